"""Your own pictures: a page that fits itself to a folder of them (docs/your_own_pictures.md).

    python -m diffusion_jax.main --config folder:photos/ --workdir runs/photos

trains on the folder as it is. It holds loose pictures, or one folder for each class, or captions: metadata.jsonl, metadata.csv,
or name.txt beside each name.jpg. A tenth of the pictures is held out, by their names. What the run will be is said in five lines
before it starts. Behind commas stand other networks and uses:

    folder:photos/,unet      a UNet in place of the DiT; slower
    folder:photos/,edm2      EDM2's network and recipe; it reads labels, no captions
    folder:photos/,text      reads the captions of a folder that has classes too
    folder:photos/,vae       an autoencoder of these pictures, the first stage of
    folder:photos/,latent    a DiT, or with another comma another network, of latents: follows from --config.first_stage
    folder:photos/,tiny      four steps of a network of no use, in seconds on a CPU; goes with all others

    python -m diffusion_jax.main --config folder:photos/,vae --workdir runs/photos_vae
    python -m diffusion_jax.main --mode encode --workdir runs/photos_vae --out runs/photos_latents
    python -m diffusion_jax.main --config folder:photos/ --config.first_stage=runs/photos_latents --workdir runs/photos_ldm

    --config.size=32            pixels of a side; 64, or less where the pictures are smaller
    --config.preset=small       tiny, small, base: of the network and its training; by the number of pictures
    --config.holdout=0.2        the share that is held out
    --config.merges=FILE        CLIP's merges for captions: by default open_clip_torch's, without it the captions' own words

Everything else is changed as on any page (--config.steps=20000); `--mode page --config folder:photos/ --out mine.py` writes all
of it out. Hardware: 2 CPU cores for the preset tiny, an accelerator for the others. This page promises no number: what comes out
is as good as the pictures are many.
"""
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffusion_jax.build import ConfigError, number, unknown
from diffusion_jax.data.folder import HOLDOUT, Folder
from diffusion_jax.data.latents import ABOUT, PICTURES, Latents
from diffusion_jax.data.overview import Overview, overview
from diffusion_jax.data.tokenizers import Spelling, spelling
from diffusion_jax.parts import SIDE
from diffusion_jax.runs.first_stage import latent_shape
from diffusion_jax.runs.folder import check_kind
from diffusion_jax.runs.lpips import where_installed
from diffusion_jax.tasks import kinds
from diffusion_jax.train.checkpoint import config_of
from diffusion_jax.train.state import plain, task_of

PRESETS = dict(
    tiny=dict(most=2_000, width=128, depth=6, unet=32, batch=32, steps=5_000, lr=1e-3, ema=0.999, dropout=0.2, augment=0.12),
    small=dict(most=30_000, width=256, depth=8, unet=64, batch=64, steps=30_000, lr=5e-4, ema=0.9995, dropout=0.1, augment=0.12),
    base=dict(most=2**31, width=512, depth=12, unet=128, batch=128, steps=200_000, lr=2e-4, ema=0.9999, dropout=0.0, augment=0.0),
)
"""Each is for up to `most` pictures. `width` and `depth` are the DiT's, `unet` and `dropout` the width and the rate of UNets."""
SECONDS = dict(width=32, depth=1, unet=16, batch=16, steps=4, lr=1e-3, ema=0.9, dropout=0.0, augment=0.12)
"""Of `,tiny`, which only shows that everything runs."""
VARIANTS = ("unet", "edm2", "text", "vae", "latent", "tiny")
EXCLUSIVE = (("unet", "edm2"), ("vae", "unet"), ("vae", "edm2"), ("vae", "text"), ("vae", "latent"))
SIZES = (64, 32, 16, 8)
GRID = 16
"""The most patches along a side of the DiT, and the most pixels at which UNets attend."""
MERGES = 3_582
"""Of CLIP's, the first; the preset base has all of them."""


class Plan(NamedTuple):
    """What get_config was asked, and what the folder says.

    Attributes:
      path, variants: the folder, and what stands behind its commas.
      contents: what is in it.
      reads: what the network is told: 'tokens', 'label' or ''.
      size: of the pictures in pixels.
      options: an entry of `PRESETS`.
      holdout: the share of the pictures that is held out.
      merges: a file of CLIP's; None looks for one.
    """

    path: str
    variants: tuple[str, ...]
    contents: Overview
    reads: str
    size: int
    options: Mapping[str, Any]
    holdout: float
    merges: str | None


class Space(NamedTuple):
    """What the network denoises: pictures or latents.

    Attributes:
      shape: (H, W, C).
      data: the section data.
      first_stage: what makes latents; None for pictures.
      pictures: whether samples can be measured: against the data, or against the pictures that latents were made of.
    """

    shape: tuple[int, ...]
    data: dict
    first_stage: Any
    pictures: bool


def get_config(
    arg: str = "", size: int | None = None, preset: str | None = None, holdout: float = HOLDOUT, merges: str | None = None,
    first_stage: str | None = None,
) -> ConfigDict:
    """The page; the argument is the folder and perhaps variants behind commas, see above."""
    plan = planned(arg, size, preset, holdout, merges)
    if first_stage is None and "latent" in plan.variants:
        raise ConfigError(no_first_stage(plan))
    if first_stage is not None and "vae" in plan.variants:
        raise ConfigError(f"folder:{arg} trains a first stage of its own: leave out --config.first_stage, or ,vae")
    config = ConfigDict()
    config.seed = 0
    if "vae" in plan.variants:
        autoencoder(config, plan)
    else:
        space = pixels(plan) if first_stage is None else latents(plan, str(Path(str(first_stage)).expanduser()), size)
        denoiser(config, plan, space)
        by_edm2(config, plan, space) if "edm2" in plan.variants else by_flow(config, plan)
    config.accumulate = 1
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=tenth(config.steps), keep=3)
    config.log_every = 50 if config.steps > 50 else 1
    return config


def tenth(steps: int) -> int:
    """How often something is done ten times in a run; twice in the shortest."""
    return max(steps // 10, 2)


def planned(arg: str, size: int | None, preset: str | None, holdout: float, merges: str | None) -> Plan:
    """The folder looked over, and what follows from it."""
    path, variants = split(arg)
    if preset is not None and preset not in PRESETS:
        raise unknown("preset", str(preset), PRESETS)
    if preset is not None and "tiny" in variants:
        raise ConfigError(f"folder:{arg} has a size of its own: leave out --config.preset, or ,tiny")
    contents = overview(path)
    if size is None:
        size = 8 if "tiny" in variants else next((one for one in SIZES if one <= contents.side), SIZES[-1])
    size = int(number("size", size, 8, SIDE, integer=True))
    if size % 8:
        raise ConfigError(f"size {size} is no multiple of 8: choose --config.size={size - size % 8} or {size + 8 - size % 8}")
    preset = preset or next(name for name, options in PRESETS.items() if contents.pictures <= options["most"])
    options = SECONDS if "tiny" in variants else PRESETS[preset]
    reads = "" if "vae" in variants else condition(path, variants, contents)
    if merges is not None and reads != "tokens":
        raise ConfigError("--config.merges is for captions, which nothing reads here: leave it out")
    holdout = Folder(path, "train", holdout).holdout                      # refused here where it is no share
    return Plan(path, variants, contents, reads, size, options, holdout, None if merges is None else str(merges))


def split(arg: str) -> tuple[str, tuple[str, ...]]:
    """(the folder, the variants) of the page's argument; a folder may have commas in its name."""
    path, variants = arg, []
    while not Path(path).expanduser().is_dir() and "," in path:
        path, _, last = path.rpartition(",")
        variants.insert(0, last)
    if not Path(path).expanduser().exists():
        # Where nothing is there, what has no comma is the folder.
        path, *variants = arg.split(",")
    if not path:
        raise ConfigError("give the folder of your pictures behind a colon: --config folder:photos/")
    for one in variants:
        if one not in VARIANTS:
            raise unknown("variant of this page", one, VARIANTS)
    both = next((pair for pair in EXCLUSIVE if {*pair} <= {*variants}), None)
    if both is not None:
        raise ConfigError(f"folder:{arg} asks for both {' and '.join(both)}: choose one")
    return path, tuple(dict.fromkeys(variants))


def condition(path: str, variants: tuple[str, ...], contents: Overview) -> str:
    """What the network is told of a picture: the raw key, '' for nothing."""
    if "text" in variants and contents.captions is None:
        raise ConfigError(f"{path}: has no captions: write name.txt beside each name.jpg, or metadata.jsonl, or leave ,text out")
    # A single class tells pictures apart no better than none.
    by_class = contents.classes > 1 and "text" not in variants
    reads = "label" if by_class else "tokens" if contents.captions is not None else ""
    if "edm2" in variants and reads == "tokens":
        raise ConfigError(f"{path}: has captions, which EDM2's network does not read: write ,unet in place of ,edm2")
    return reads


def pictures(plan: Plan, channels: int, flip: bool) -> dict:
    """The section data of the folder itself."""
    source = dict(name="diffusion_jax.data.folder:Folder", path=plan.path, holdout=plan.holdout)
    decode = dict(name="diffusion_jax.data.image:Decode", size=plan.size, channels=channels, flip=flip)
    return dict(train={**source, "split": "train"}, test={**source, "split": "test"}, decode=decode)


def pixels(plan: Plan) -> Space:
    """The pictures; augmentation mirrors too, and says so to the network."""
    size, channels = plan.size, plan.contents.channels
    return Space((size, size, channels), pictures(plan, channels, flip=not plan.options["augment"]), None, True)


def latents(plan: Plan, where: str, size: int | None) -> Space:
    """Latents that mode encode wrote, or those that an autoencoder makes on the way."""
    if (Path(where) / ABOUT).is_file():
        if size is not None:
            raise ConfigError(f"{where} holds latents, whose size it is: leave out --config.size")
        if plan.holdout != HOLDOUT:
            raise ConfigError(f"{where} holds latents, of which a share is held out: leave out --config.holdout, or encode anew")
        written = Latents(where)
        record, source = written[0], dict(name="diffusion_jax.data.latents:Latents", path=where)
        needed = {"label": "label", "tokens": "caption"}.get(plan.reads)
        if needed and needed not in record:
            raise ConfigError(f"the latents in {where} have no {needed}, as {plan.path} has now: encode it anew, elsewhere")
        decode = dict(name="diffusion_jax.data.latents:Draw", path=where)
        data = dict(train={**source, "split": "train"}, test={**source, "split": "test"}, decode=decode)
        shape = record["moments"].shape[2:]
        return Space(shape, data, first_of(f"{where}/first_stage", shape), PICTURES in written.about)
    config = plain(config_of(where))
    coder = task_of(config)
    check_kind(coder, kinds.Encoding, f"--config.first_stage {where}")
    if "scale" not in config["task"]:
        raise ConfigError(f"nobody measured the latents of {where} yet: {encode(plan, where)}, then "
                          f"--config.first_stage={home(plan)}_latents")
    shape = (plan.size, plan.size, coder.shape[-1])
    data = pictures(plan, shape[-1], flip=True)
    return Space(latent_shape(coder, shape), data, dict(folder=where, shape=shape), True)


def first_of(folder: str, shape: tuple[int, ...]) -> Any:
    """The section first_stage of latents (h, w, c), whose pictures may have another size than those it was trained on."""
    coder = task_of(config_of(folder))
    own = latent_shape(coder, coder.shape)
    if own == shape:
        return folder
    height, width = (side * wanted // there for side, wanted, there in zip(coder.shape[:2], shape[:2], own[:2], strict=True))
    return dict(folder=folder, shape=(height, width, coder.shape[-1]))


def home(plan: Plan) -> str:
    """Where the runs of these pictures are to lie."""
    return f"runs/{Path(plan.path).expanduser().resolve().name}"


def encode(plan: Plan, where: str) -> str:
    """The command that writes the latents of an autoencoder."""
    return f"python -m diffusion_jax.main --mode encode --workdir {where} --out {home(plan)}_latents"


def no_first_stage(plan: Plan) -> str:
    """How to come to one."""
    stage = f"{home(plan)}_vae"
    return (f"latents need a first stage: python -m diffusion_jax.main --config folder:{plan.path},vae --workdir {stage}, then "
            f"{encode(plan, stage)}, then --config.first_stage={home(plan)}_latents; or give the folder of an imported one")


def denoiser(config: ConfigDict, plan: Plan, space: Space) -> None:
    """Data, network and what it is told."""
    config.model, width = network(plan, space)
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion", cond=conditioner(plan, width, space), shape=space.shape,
        drop={plan.reads: 0.1} if plan.reads else {},
    )
    config.data = space.data
    if plan.reads == "tokens":
        config.data.decode.tokenizer = spelt(plan).spec
    if space.first_stage is not None:
        config.first_stage = space.first_stage
    config.update(batch=plan.options["batch"], steps=plan.options["steps"])
    guidance = 2.0 if plan.reads else 1.0
    config.sample = dict(num=16, every=tenth(config.steps), guidance=guidance)
    measured = max(20 if "tiny" in plan.variants else 200, plan.contents.classes)
    config.evaluate = dict(num=measured if space.pictures else 0, guidance=guidance)
    if "tiny" not in plan.variants:
        config.validate = dict(every=tenth(config.steps))
        # On the way too: few pictures are learned by heart long before the last step.
        config.evaluate.update(every=tenth(config.steps) if space.pictures else 0, samples=max(100, plan.contents.classes))


def network(plan: Plan, space: Space) -> tuple[dict, int]:
    """(the section model, the width of its vec)."""
    side, channels, options = space.shape[0], space.shape[-1], plan.options
    if not {"unet", "edm2"} & {*plan.variants}:
        width = options["width"]
        block = "cross_attention" if plan.reads == "tokens" else "adaln_zero"
        return dict(
            name="diffusion_jax.models.dit:DiT", patch=patch(side, not space.first_stage), width=width, depth=options["depth"],
            heads=max(width // 64, 4), block=block, channels=channels, learn_sigma=False, scan=True, remat="dots",
        ), width
    levels = sum(side % 2**i == 0 and side // 2**i >= 8 for i in range(1, 4)) + 1
    factors = [2**i for i in range(levels)]
    attend = [factor for factor in factors if side // factor <= GRID] or factors[-1:]
    width, mults = options["unet"], (1, 2, 3, 4)[:levels]
    sizes = dict(width=width, mults=mults, depth=2, attend=tuple(attend), channels=channels, dropout=options["dropout"])
    if "edm2" in plan.variants:
        return dict(name="diffusion_jax.models.edm2:EDM2", head_channels=min(width, 32), **sizes), width * mults[-1]
    return dict(name="diffusion_jax.models.unet:UNet", heads=4, groups=8, learn_sigma=False, **sizes), 4 * width


def patch(side: int, of_pixels: bool) -> int:
    """The least side of a patch, a power of two, with which at most `GRID` of them cover a side; from 32 pixels on 4."""
    # A quarter of the tokens, three to four times as fast. A patch of 8 pixels, 192 numbers, is more than 128 can tell of noise.
    least = 1 if side % 2 or side < 4 else 4 if of_pixels and side >= 32 else 2
    fitting = next((p for p in (2**i * least for i in range(12)) if side % p == 0 and side // p <= GRID), None)
    if fitting is None:
        raise ConfigError(f"size {side} does not divide into {GRID} patches or fewer: choose a multiple of a larger power of two")
    return fitting


def conditioner(plan: Plan, width: int, space: Space) -> dict:
    """The section task.cond: what is told of the picture, and of its augmentation."""
    edm2, unet = "edm2" in plan.variants, "unet" in plan.variants
    cond = dict(name="diffusion_jax.models.cond:Nothing")
    if plan.reads == "label" and edm2:
        cond = dict(name="diffusion_jax.models.cond:OneHot", num_classes=plan.contents.classes, width=width)
    elif plan.reads == "label":
        std = 1.0 if unet else 0.02
        cond = dict(name="diffusion_jax.models.cond:Label", num_classes=plan.contents.classes, width=width, std=std)
    elif plan.reads == "tokens":
        text = spelt(plan)
        tower = dict(
            name="diffusion_jax.models.clip:TextTower", features=None, vocab=text.vocab, context=text.length,
            width=plan.options["width"], layers=2, heads=4,
        )
        cond = dict(
            name="diffusion_jax.models.text_cond:TowerText", tower=tower, empty=text.empty, context=text.length, frozen=False,
        )
    rate = plan.options["augment"]
    if not rate or space.first_stage is not None:
        return cond
    return dict(name="diffusion_jax.models.augment:Augmented", cond=cond, width=width, rate=rate, normalised=edm2)


def spelt(plan: Plan) -> Spelling:
    """The tokenizer of the captions."""
    return spelling(plan.contents.captions, plan.merges, None if plan.options is PRESETS["base"] else MERGES)


def by_flow(config: ConfigDict, plan: Plan) -> None:
    """Straight paths from noise to pictures, at a constant rate: `--config.steps` may be raised later."""
    config.task.update(
        process=dict(name="diffusion_jax.diffusion.process:Flow"), scale=dict(name="diffusion_jax.diffusion.scales:Velocity"),
        times=dict(name="diffusion_jax.diffusion.times:LogitNormal"),
    )
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=plan.options["lr"], schedule="constant",
        warmup=min(config.steps // 10, 500), clip=1.0, weight_decay=0.01,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=plan.options["ema"]))
    config.sample.update(sampler="dpmpp_2m", steps=5 if "tiny" in plan.variants else 25, times="uniform")


def by_edm2(config: ConfigDict, plan: Plan, space: Space) -> None:
    """EDM2's recipe, at a size for few pictures."""
    of_latents = space.first_stage is not None
    mean, std = (-0.4, 1.0) if of_latents else (-0.8, 1.6)
    config.task.update(
        process=dict(name="diffusion_jax.diffusion.process:EDM"),
        scale=dict(name="diffusion_jax.diffusion.scales:EDM", sigma_data=1.0 if of_latents else 0.5),
        times=dict(name="diffusion_jax.diffusion.times:LogNormal", mean=mean, std=std),
        uncertainty=dict(name="diffusion_jax.models.edm2:Uncertainty"), forced=True,
    )
    # Adam's eps is that of a loss summed over an image, as theirs is.
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adam", lr=1e-2, schedule="inverse_sqrt",
        warmup=min(config.steps // 10, 500), ref=max(config.steps // 4, 1), b2=0.99, eps=1e-8 / math.prod(space.shape),
    )
    power = "diffusion_jax.train.ema:Power"
    config.ema = dict(ema=dict(name=power, std=0.10), short=dict(name=power, std=0.05))
    config.snapshots = dict(every=tenth(config.steps))
    config.sample.update(sampler="edm", steps=5 if "tiny" in plan.variants else 18, times="karras")


def autoencoder(config: ConfigDict, plan: Plan) -> None:
    """A first stage whose latents are 4 times smaller, 8 times from 128 pixels on; trained by LPIPS too where it is installed."""
    small, steps, channels = "tiny" in plan.variants, plan.options["steps"], plan.contents.channels
    mults = (1, 2) if plan.size < 32 else (1, 2, 4) if plan.size < 128 else (1, 2, 4, 4)
    config.model = dict(
        name="diffusion_jax.models.vae:KL", channels=channels, latent=4, width=8 if small else plan.options["unet"], mults=mults,
        depth=1, groups=4 if small else 8,
    )
    disc = dict(name="diffusion_jax.models.gan:Discriminator", width=8 if small else 32, depth=1 if small else 2)
    config.task = dict(
        name="diffusion_jax.tasks.autoencoder:Autoencoder", shape=(plan.size, plan.size, channels), weight=1e-4,
        losses=dict(
            name="diffusion_jax.tasks.autoencoder_loss:Losses", disc_weight=0.1, disc_start=steps // 2, ramp=tenth(steps),
            lead=tenth(steps), limit=10.0, disc=disc,
        ),
    )
    config.data = pictures(plan, channels, flip=True)
    config.update(batch=16, steps=steps)
    adam = dict(name="diffusion_jax.train.optim:optimizer", method="adam", lr=1e-3, warmup=50, b1=0.5, b2=0.9, clip=1.0)
    config.optim = dict(name="diffusion_jax.train.optim:partition", parts=dict(model=adam, disc={**adam, "lr": 2e-4}))
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.evaluate = dict(num=0)
    if not small:
        where_installed(config, weight=0.25)
