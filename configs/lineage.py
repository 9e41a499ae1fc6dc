"""The lineage of text-to-image on one data set: every system from DALL·E to Stable Diffusion 3, each with the same training.

    python -m diffusion_jax.main --config configs/lineage.py --mode lineage --workdir runs/lineage
    python -m diffusion_jax.main --config lineage:tiny --mode lineage --workdir runs/lineage_tiny
    python -m diffusion_jax.main --config lineage --config.ablate=guidance --mode lineage --workdir runs/guidance

A page of stages (diffusion_jax/lineage/stages.py), not of one run. Each system of the handwritten digits has 4e12 operations of
training, its share of helpers included; `--config.budget=pictures` gives each 100,000 pictures instead. `--config.seeds=3` trains
three runs of each system. In place of the path `--config.ablate=` compares, with the same budget,

    prediction   eps, v, x0 and velocity, each with its simple loss and with the weight min-SNR
    blocks       the four blocks of DiT
    edm2         EDM2's ladder, A to G
    latents      latents of a KL autoencoder and of a VQ, tokens of a discrete VAE
    prior        unCLIP with a prior, with the text's own embedding, and with none
    guidance     forms of guidance of one DiT

The class-conditional systems of flowers, in the latents that configs/flowers102_tae.py makes and with the operations of 1,800 of
its steps, about 20 minutes for each:

    python -m diffusion_jax.main --mode lineage --config lineage:flowers=../shared/data/flowers102,runs/flowers_tae \\
        --workdir runs/lineage_flowers

The text-conditional systems of emoji, 64x64, those of latents in the same autoencoder's (configs/emoji_ldm.py says how they are
made), with the operations of 3,086 steps of latent diffusion, about an hour for each; a CLIP measures all of them:

    python -m diffusion_jax.main --mode lineage --config lineage:emoji=../shared/data/emoji,runs/emoji_tae \
        --workdir runs/lineage_emoji

Those of your own pictures, which lie in a folder for each class, with 2e14 operations (`--config.budget.amount`):

    python -m diffusion_jax.main --mode lineage --config lineage:folder=photos/ --workdir runs/lineage_photos

Hardware: 2 CPU cores. The digits took 63 minutes of training beside much other work and 12 of comparison: expect an FID of 0.45
for latent diffusion, 0.66 for EDM2, 0.70 for DiT and 0.77 for Stable Diffusion 3, all without guidance (docs/lineage.md has the
table). The other paths have not been run to their ends.
"""
import json

from ml_collections import ConfigDict

from diffusion_jax.build import ConfigError, build, unknown
from diffusion_jax.data.digits import WORDS
from diffusion_jax.data.source import existing
from diffusion_jax.runs import pages
from diffusion_jax.runs.page import variant

AMOUNTS = dict(flops=4e12, pictures=100_000)
"""Of training of one system."""
TINY = dict(flops=1e9, pictures=1_000)
FLOWERS = dict(flops=7.3e13, pictures=115_000)
OWN = dict(flops=2e14, pictures=160_000)
FLOWER_KINDS, PROMPTS = 102, 100
EMOJI = dict(flops=2.2e14, pictures=250_000)
GUIDANCE = dict(name="guidance", values=(1, 1.5, 2, 3, 4))
SHORT = {"optim.lr": 2e-3, "optim.warmup": 30, "ema.ema.decay": 0.98}
"""Of UNets of pixels, whose steps cost most: a few hundred have to do."""
DIFFIT = dict(name="diffusion_jax.models.diffit:DiffiT", patch=2, grid=4, width=96, depth=4, heads=4, channels=1,
              learn_sigma=False, scan=True)


def get_config(arg: str = "", budget: str = "flops", ablate: str = "") -> ConfigDict:
    """The page; `:tiny` takes two minutes on a quiet machine, the others see above."""
    name, _, folders = arg.partition("=")
    variant(name, "", "digits", "tiny", "flowers", "emoji", "folder")
    amounts = dict(tiny=TINY, flowers=FLOWERS, emoji=EMOJI, folder=OWN).get(name, AMOUNTS)
    if budget not in amounts:
        raise unknown("measure of a budget", budget, amounts)
    if ablate and amounts is not AMOUNTS:
        raise ConfigError("ablations are of the digits")
    if ablate and ablate not in ABLATIONS:
        raise unknown("ablation", ablate, ABLATIONS)
    config = ConfigDict()
    config.measure = config.reference = "measure"
    config.judge = None
    config.seeds = 1
    config.prompts = ()
    config.budget = dict(measure=budget, amount=amounts[budget])
    if name == "flowers":
        config.data = "flowers"
        config.classes = tuple(map(str, range(FLOWER_KINDS)))
        config.stages = flowers(folders)
    elif name == "emoji":
        config.data = "emoji"
        config.measure = config.judge = "judge"
        config.reference = "dvae"
        config.classes = ()
        config.prompts, config.stages = emoji(folders)
    elif name == "folder":
        config.data = folders
        config.classes, config.stages = own(folders)
    else:
        config.data = "digits"
        config.judge = "judge"
        config.classes = tuple("0123456789")
        config.prompts = tuple(f"a handwritten {word}" for word in WORDS)
        config.stages = tiny() if name == "tiny" else measures() + (ABLATIONS[ablate] if ablate else path)()
    return config


def stage(key: str, name: str, year: int, page: str, needs: dict | None = None, **options) -> dict:
    """A system; `options` are fields of diffusion_jax.lineage.stages.Stage."""
    return dict(key=key, name=name, year=year, page=page, needs=needs or {}) | dict(strength=GUIDANCE) | options


def helper(key: str, name: str, year: int, page: str, needs: dict | None = None, **overrides) -> dict:
    """A helper; of `overrides` of its page two underscores stand for a dot."""
    changes = {name.replace("__", "."): value for name, value in overrides.items()}
    return dict(key=key, name=name, year=year, page=page, needs=needs or {}, overrides=changes, helper=True)


# The path -------------------------------------------------------------------------------------------------------------------


def measures() -> list[dict]:
    """What measures all systems, and helps none."""
    return [
        helper("measure", "classifier that measures", 2021, "digits_classifier", seed=1, steps=300),
        helper("judge", "CLIP that measures", 2021, "digits_clip", seed=1, steps=400),
    ]


def clip() -> dict:
    """The CLIP that reranks and that unCLIP's embeddings are of."""
    return helper("clip", "CLIP", 2021, "digits_clip", steps=300, batch=64)


def dvae() -> dict:
    """DALL·E's tokens."""
    return helper("dvae", "discrete VAE", 2021, "digits_dvae")


def autoencoder(key: str, name: str, page: str) -> dict:
    """Of half its page's steps, with a discriminator from the middle on."""
    adversarial = dict(task__losses__disc_start=250, task__losses__ramp=50, task__losses__lead=50)
    return helper(key, name, 2022, page, steps=500, **adversarial)


def prior() -> dict:
    """unCLIP's diffusion prior, smaller than its page's."""
    return helper("prior", "diffusion prior", 2022, "digits_unclip:prior", {"first_stage": "clip"}, steps=400, model__width=64,
                  model__layers=2)


def dit(key: str = "dit", name: str = "DiT", year: int = 2022, **overrides) -> dict:
    """The DiT of the quick start; of `overrides` two underscores stand for a dot."""
    changes = {name.replace("__", "."): value for name, value in overrides.items()}
    return stage(key, name, year, "digits", sample=dict(steps=25), overrides=changes)


def path() -> list[dict]:
    """The systems in their order, each helper before the first that needs it."""
    return [
        clip(), dvae(),
        stage("dalle", "DALL·E", 2021, "digits_dalle", {"dvae": "dvae", "judge": "clip"}, ask="prompt",
              strength=dict(name="candidates", values=(1, 2, 4, 8))),
        helper("guide", "noisy classifier", 2021, "digits_classifier", seed=2, steps=200),
        stage("adm", "ADM", 2021, "digits_adm", {"classifier": "guide"}, overrides={"batch": 64, **SHORT}, sample=dict(steps=25),
              strength=dict(name="classifier_scale", values=(0, 1, 2, 4, 8))),
        stage("glide", "GLIDE", 2021, "digits_glide", overrides=SHORT, ask="prompt", sample=dict(guidance=1.0)),
        prior(),
        stage("unclip", "unCLIP", 2022, "digits_unclip", {"first_stage": "clip", "prior": "prior"}, overrides=SHORT, ask="prompt",
              sample=dict(guidance=1.0)),
        autoencoder("vae", "KL autoencoder", "digits_vae"),
        stage("ldm", "latent diffusion", 2022, "digits_ldm", {"latents": "vae"}, ask="prompt", sample=dict(guidance=1.0)),
        dit(),
        dit("diffit", "DiffiT", 2023, model=DIFFIT),
        stage("cads", "CADS", 2023, "", {"run": "dit"}, sample=dict(steps=25, guidance=4.0, cads="s=0.1"),
              strength=dict(name="cads.s", values=(0, 0.05, 0.1, 0.25))),
        stage("edm2", "EDM2", 2023, "digits_edm2", {"weak": "edm2"}, sample=dict(weak_step=200),
              strength=dict(name="guidance", values=(1, 1.25, 1.5, 2, 3))),
        stage("mmdit", "Stable Diffusion 3", 2024, "sd3_tiny", ask="prompt", sample=dict(guidance=1.0)),
    ]


def tiny() -> list[dict]:
    """Stages of every kind of need, of networks that are trained in seconds."""
    small = {"model.width": 16, "model.mults": (1,), "model.attend": (1,), "model.heads": 2, "batch": 8, "optim.warmup": 1}
    guidance = dict(name="guidance", values=(1, 2))
    return [
        helper("measure", "classifier that measures", 2021, "digits_classifier:tiny", seed=1),
        helper("judge", "CLIP that measures", 2021, "digits_clip:tiny", seed=1),
        helper("dvae", "discrete VAE", 2021, "digits_dvae:tiny"),
        stage("dalle", "DALL·E", 2021, "digits_dalle:tiny", {"dvae": "dvae"}, ask="prompt",
              strength=dict(name="temperature", values=(0.5, 1))),
        helper("vae", "KL autoencoder", 2022, "digits_vae:tiny"),
        stage("ldm", "latent diffusion", 2022, "digits_ldm", {"latents": "vae"}, ask="prompt", overrides=small,
              sample=dict(steps=4, guidance=1.0), strength=guidance),
        stage("dit", "DiT", 2022, "digits:tiny", sample=dict(steps=4), strength=guidance),
        stage("cads", "CADS", 2023, "", {"run": "dit"}, sample=dict(steps=4, guidance=2, cads="s=0.1"),
              strength=dict(name="cads.s", values=(0.1, 0.5))),
        stage("edm2", "EDM2", 2023, "digits_edm2:tiny", {"weak": "edm2"}, overrides={"checkpoint.keep": 9},
              sample=dict(steps=4, weak_step=4), strength=guidance),
    ]


def flowers(folders: str) -> list[dict]:
    """The class-conditional systems, of flowers in the latents of a published tiny autoencoder.

    Args:
      folders: "PICTURES,LATENTS": that of images128.zip and labels.json, and the latents of configs/flowers102_tae.py.
    """
    pictures, comma, latents = folders.partition(",")
    if not (pictures and comma and latents):
        raise ConfigError("write lineage:flowers=PICTURES,LATENTS, as configs/flowers102_tae.py makes them")
    page = f"flowers102_tae:{latents}"
    edm = "diffusion_jax.diffusion"
    edm2 = {
        "model": dict(name="diffusion_jax.models.edm2:EDM2", width=64, mults=(1, 2), depth=1, head_channels=64, channels=32,
                      attend=(2,)),
        "task.cond": dict(name="diffusion_jax.models.cond:OneHot", num_classes=FLOWER_KINDS, width=128, normalised=True),
        "task.process": dict(name=f"{edm}.process:EDM"),
        "task.scale": dict(name=f"{edm}.scales:EDM", sigma_data=1.0),
        "task.times": dict(name=f"{edm}.times:LogNormal", mean=-0.4, std=1.0),
        "task.uncertainty": dict(name="diffusion_jax.models.edm2:Uncertainty", features=32),
        "task.forced": True,
        "optim": dict(name="diffusion_jax.train.optim:optimizer", method="adam", lr=1e-2, warmup=100, b2=0.99, eps=1e-8 / 2048,
                      schedule="inverse_sqrt", ref=500),
        "sample": dict(num=32, every=1000, sampler="edm", steps=18, times="karras", guidance=1.0),
    }
    diffit = DIFFIT | dict(width=256, depth=8, channels=32)
    return [
        helper("measure", "classifier that measures", 2021, f"flowers102_classifier:{pictures}"),
        stage("dit", "DiT", 2022, page, sample=dict(guidance=1.0)),
        stage("diffit", "DiffiT", 2023, page, overrides={"model": diffit}, sample=dict(guidance=1.0)),
        stage("cads", "CADS", 2023, "", {"run": "dit"}, sample=dict(guidance=4.0, cads="s=0.1"),
              strength=dict(name="cads.s", values=(0, 0.05, 0.1, 0.25))),
        stage("edm2", "EDM2", 2023, page, overrides=edm2),
    ]


def emoji(folders: str) -> tuple[tuple[str, ...], list[dict]]:
    """(held-out captions, the text-conditional systems) of emoji at 64x64.

    Args:
      folders: "PICTURES,LATENTS": that of emoji64.npz and captions.json, and the latents of configs/emoji_ldm.py:...,tae.
    """
    pictures, comma, latents = folders.partition(",")
    if not (pictures and comma and latents):
        raise ConfigError("write lineage:emoji=PICTURES,LATENTS, as configs/emoji_ldm.py makes them")
    table = json.loads(existing(f"{pictures}/captions.json").read_text(encoding="utf-8"))
    rows = zip(table["caption"], table["split"], table["skin_tone"], strict=True)
    held_out = sorted({caption for caption, split, tone in rows if split == "val" and not tone}, key=str.lower)
    every = max(1, len(held_out) // PROMPTS)
    by_text = dict(ask="prompt", sample=dict(guidance=1.0))
    unclip = f"emoji_unclip:{pictures}"
    return tuple(held_out[::every][:PROMPTS]), [
        helper("judge", "CLIP that measures", 2021, f"emoji_clip:{pictures},judge"),
        helper("clip", "CLIP", 2021, f"emoji_clip:{pictures}", steps=600),
        helper("dvae", "discrete VAE", 2021, f"emoji_dvae:{pictures}", task__shape=(64, 64, 3), data__decode__size=64,
               model__mults=(1, 2, 4, 8)),
        stage("dalle", "DALL·E", 2021, f"emoji_dalle:{pictures}", {"dvae": "dvae"}, overrides={"data.decode.size": 64},
              ask="prompt", strength=dict(name="temperature", values=(0.25, 0.5, 0.75, 1))),
        helper("glide_up", "GLIDE's upsampler", 2021, f"emoji_glide:{pictures},upsample64"),
        stage("glide", "GLIDE", 2021, f"emoji_glide:{pictures}", {"upsampler": "glide_up"}, **by_text),
        helper("prior", "diffusion prior", 2022, f"{unclip},prior", {"first_stage": "clip"}),
        helper("unclip_up", "unCLIP's upsampler", 2022, f"{unclip},upsample"),
        stage("unclip", "unCLIP", 2022, unclip, {"first_stage": "clip", "prior": "prior", "upsampler": "unclip_up"}, **by_text),
        stage("ldm", "latent diffusion", 2022, f"emoji_ldm:{latents},tae", **by_text),
        stage("cads", "CADS", 2023, "", {"run": "ldm"}, ask="prompt", sample=dict(guidance=4.0, cads="s=0.1"),
              strength=dict(name="cads.s", values=(0, 0.05, 0.1, 0.25))),
        stage("mmdit", "Stable Diffusion 3", 2024, f"sd3_tiny:{latents},latents", **by_text),
    ]


def own(folder: str) -> tuple[tuple[str, ...], list[dict]]:
    """(the classes, the class-conditional systems) of a folder that has a folder of pictures for each class."""
    page = f"folder:{folder}"
    config = pages.read(page)
    size, _, channels = config.task.shape
    classes = build(config.data.train.to_dict()).names
    if not classes:
        raise ConfigError(f"{folder} has no classes to be measured by: lineage:folder= needs a folder for each class")
    network = {name: config.model[name] for name in ("patch", "width", "depth", "heads")}
    diffit = DIFFIT | network | dict(grid=size // config.model.patch, channels=channels)
    return classes, [
        helper("measure", "classifier that measures", 2021, "flowers102_classifier", data=config.data.to_dict(),
               task__shape=config.task.shape, model__num_classes=len(classes)),
        stage("unet", "UNet", 2021, f"{page},unet"),
        stage("dit", "DiT", 2022, page),
        stage("diffit", "DiffiT", 2023, page, overrides={"model": diffit}),
        stage("cads", "CADS", 2023, "", {"run": "dit"}, sample=dict(guidance=4.0, cads="s=0.1"),
              strength=dict(name="cads.s", values=(0, 0.05, 0.1, 0.25))),
        stage("edm2", "EDM2", 2023, f"{page},edm2"),
    ]


# Ablations ------------------------------------------------------------------------------------------------------------------


def prediction() -> list[dict]:
    """What the network predicts x how its loss is weighed."""
    scales = dict(eps="Eps", v="V", x0="X0")
    weights = dict(simple={}, minsnr=dict(task__weight=dict(name="diffusion_jax.diffusion.losses:MinSNR")))
    stages = []
    for weight, changes in weights.items():
        for key, scale in scales.items():
            name = f"diffusion_jax.diffusion.scales:{scale}"
            stages.append(dit(f"{key}_{weight}", f"{key}, {weight}", task__scale=dict(name=name), **changes))
    flow = dict(
        task__process=dict(name="diffusion_jax.diffusion.process:Flow"),
        task__scale=dict(name="diffusion_jax.diffusion.scales:Velocity"),
    )
    uniform = dit("velocity_simple", "velocity, simple", **flow)
    logit = dit("velocity_logit", "velocity, logit-normal", **flow,
                task__times=dict(name="diffusion_jax.diffusion.times:LogitNormal"))
    return [*stages, uniform, logit]


def blocks() -> list[dict]:
    """The four blocks of DiT."""
    names = ("adaln_zero", "adaln", "cross_attention", "in_context")
    return [dit(name, f"DiT, {name}", model__block=name) for name in names]


def ladder() -> list[dict]:
    """EDM2's steps from A to G."""
    letters = dict(A=2022) | dict.fromkeys("BCDEFG", 2023)
    return [stage(f"edm2_{letter.lower()}", f"EDM2 {letter}", year, f"digits_edm2:{letter}")
            for letter, year in letters.items()]


def latents() -> list[dict]:
    """What a picture is made of."""
    ldm = dict(ask="prompt", sample=dict(guidance=1.0))
    return [
        dvae(), stage("dalle", "tokens of a discrete VAE", 2021, "digits_dalle", {"dvae": "dvae"}, ask="prompt"),
        autoencoder("kl", "KL autoencoder", "digits_vae"),
        stage("ldm_kl", "latents of a KL", 2022, "digits_ldm", {"latents": "kl"}, **ldm),
        autoencoder("vq", "VQ", "digits_vae:vq"),
        stage("ldm_vq", "latents of a VQ", 2022, "digits_ldm", {"latents": "vq"}, **ldm),
    ]


def priors() -> list[dict]:
    """Where unCLIP's decoder has its embeddings from."""
    run = dict(needs={"run": "unclip"}, ask="prompt")
    return [
        clip(), prior(),
        stage("unclip", "with a prior", 2022, "digits_unclip", {"first_stage": "clip", "prior": "prior"}, overrides=SHORT,
              ask="prompt", sample=dict(guidance=1.0)),
        stage("by_text", "the text's embedding", 2022, "", sample=dict(guidance=1.0, prior="text"), **run),
        stage("by_caption", "the caption alone", 2022, "", sample=dict(guidance=1.0, prior="caption"), **run),
    ]


def forms() -> list[dict]:
    """Forms of guidance of one DiT, at the same scales."""
    options = dict(
        interval=("in an interval", 2024, dict(interval="0.2,5")), phi=("rescaled phi", 2023, dict(phi=0.7)),
        parallel=("without its parallel part", 2024, dict(keep_parallel=0.0)), plus_plus=("CFG++", 2024, dict(plus_plus=True)),
        cads=("CADS", 2023, dict(cads="s=0.1")),
    )
    return [dit(name="classifier-free")] + [
        stage(key, name, year, "", {"run": "dit"}, sample=dict(steps=25, guidance=2.0, **sample))
        for key, (name, year, sample) in options.items()
    ]


ABLATIONS = dict(prediction=prediction, blocks=blocks, edm2=ladder, latents=latents, prior=priors, guidance=forms)
