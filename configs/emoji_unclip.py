"""Emoji from their Unicode names: unCLIP (DALL-E 2, 2204.06125) at 32x32 with the CLIP of emoji_clip: decoder, priors, upsampler.

    python -m diffusion_jax.main --config configs/emoji_unclip.py:../shared/data/emoji --workdir runs/emoji_unclip
    python -m diffusion_jax.main --config configs/emoji_unclip.py:../shared/data/emoji,prior --workdir runs/emoji_prior
    python -m diffusion_jax.main --config configs/emoji_unclip.py:../shared/data/emoji,ar --workdir runs/emoji_prior_ar
    python -m diffusion_jax.main --config configs/emoji_unclip.py:../shared/data/emoji,upsample --workdir runs/emoji_unclip_up
    python -m diffusion_jax.main --workdir runs/emoji_unclip --mode sample --prior runs/emoji_prior --prompt "red apple"

reads emoji64.npz and captions.json in the folder that is the page's argument, and the CLIP in runs/emoji_clip
(--config.first_stage). The parts are those of configs/digits_unclip.py; `,upsample` makes 64x64 of blurred 32x32, `,upsample,bsr`
of worse ones.

Hardware: 2 CPU cores; on one of them the decoder takes 43 minutes, the prior 10. Expect a loss on held-out emoji of 0.133; in
the eyes of the judge of configs/emoji_clip.py 0.88 of 50 captions that were trained on are the first of ten, and 0.50 of
held-out ones. After 700 steps, of 100 held-out captions 0.67, 0.86, 0.76 and 0.83 are the first of ten in the eyes of
runs/emoji_clip (--mode evaluate --metric clip --features runs/emoji_clip --steps 15 --guidance 2; chance is 0.1), by --prior
caption, text, runs/emoji_prior_ar and runs/emoji_prior. `,upsample` ends at a loss of 0.05 (v); docs/emoji_unclip_up.png shows
it.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny, variant

CONTEXT, MERGES, FEATURES, WIDTH = 24, 3582, 128, 48
MODELS = "diffusion_jax.models"


def source(folder: str, split: str) -> dict:
    """The emoji of a split."""
    return dict(name="diffusion_jax.data.arrays:Arrays", path=f"{folder}/emoji64.npz", meta=("captions.json",), split=split)


def part(name: str) -> dict:
    """model and task of a part: '' the decoder, 'prior', 'ar' or 'upsample'."""
    diffusion = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion", shape=(32, 32, 3),
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="squaredcos"),
        scale=dict(name="diffusion_jax.diffusion.scales:V"),
    )
    unet = dict(name=f"{MODELS}.unet:UNet", width=WIDTH, depth=1, heads=4, groups=8, channels=3, learn_sigma=False)
    if name == "ar":
        net = dict(name=f"{MODELS}.prior_ar:ARPrior", length=FEATURES, context=CONTEXT, width=96, depth=3, heads=4, dropout=0.1)
        return dict(model=net, task=dict(name="diffusion_jax.tasks.prior:AutoregressivePrior", drop=0.1))
    if name == "prior":
        net = dict(name=f"{MODELS}.prior:Prior", features=FEATURES, context=CONTEXT, width=128, layers=3, heads=4)
        cond = dict(name=f"{MODELS}.unclip:Text", features=FEATURES)
        x0 = dict(scale=dict(name="diffusion_jax.diffusion.scales:X0"), shape=(FEATURES,), drop=dict(with_text=0.1))
        return dict(model=net, task=diffusion | x0 | dict(name="diffusion_jax.tasks.prior:DiffusionPrior", cond=cond))
    if name.startswith("upsample"):
        cond = dict(name=f"{MODELS}.cond:LowRes", factor=2, degrade="bsr" if name.endswith("bsr") else "blur")
        net = unet | dict(mults=(0.5, 1, 1), attend=(), mid_attention=False)
        return dict(model=net, task=diffusion | dict(cond=cond, shape=(64, 64, 3)))
    cond = dict(name=f"{MODELS}.unclip:ImageText", features=FEATURES, out=4 * WIDTH, width=2 * WIDTH)
    net = unet | dict(mults=(0.5, 1, 2), attend=(4,))
    return dict(model=net, task=diffusion | dict(cond=cond, drop=dict(with_image=0.1, with_text=0.5)))


def get_config(arg: str = "") -> ConfigDict:
    """The page; `:tiny` runs in seconds, any other argument is the folder of the emoji and perhaps a part."""
    folder, _, name = arg.partition(",")
    variant(name, "", "prior", "ar", "upsample", "upsample,bsr")
    config = ConfigDict(part(name))
    config.seed = 0
    large = name.startswith("upsample")
    config.data = dict(
        train=source(folder, "train"), test=source(folder, "val"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=64 if large else 32),
    )
    if not large:
        config.first_stage = "runs/emoji_clip"
    config.batch = 64 if name in ("prior", "ar") else 16 if large else 32
    config.accumulate = 1
    config.steps = 700 if large else dict(prior=1500, ar=800).get(name, 1400)
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-3, schedule="cosine", warmup=100, steps=config.steps,
        clip=1.0, weight_decay=6e-2 if name in ("prior", "ar") else 0.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=200, keep=2)
    config.log_every = 50
    config.evaluate = dict(num=0)
    config.validate = dict(every=100)
    if name != "ar":
        config.sample = dict(num=36, every=400, sampler="ddim", steps=27, times="respace", clip=1.0, guidance=2.0)
        config.evaluate.guidance = 1.0
    if name == "prior":
        config.sample.update(sampler="ancestral", steps=64, clip=5.0, guidance=1.0)
    if large:
        config.sample.update(guidance=1.0, num=16)
    merges = {"most": MERGES}
    if arg == "tiny":
        net = dict(width=16, mults=(1,), attend=(1,), channels=1)
        config = tiny(config, model=net, cond=dict(out=64, width=16))
        merges = {"merges": ""}
    config.data.decode.tokenizer = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=CONTEXT, **merges)
    return config
