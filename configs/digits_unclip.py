"""Handwritten digits, 8x8: unCLIP (DALL-E 2, 2204.06125) with the CLIP of digits_clip: decoder, two priors, an upsampler.

    python -m diffusion_jax.main --config configs/digits_clip.py --workdir runs/digits_clip
    python -m diffusion_jax.main --config configs/digits_unclip.py --workdir runs/digits_unclip
    python -m diffusion_jax.main --config configs/digits_unclip.py:prior --workdir runs/digits_prior
    python -m diffusion_jax.main --config configs/digits_unclip.py:ar --workdir runs/digits_prior_ar
    python -m diffusion_jax.main --config configs/digits_unclip.py:upsample --workdir runs/digits_unclip_up
    python -m diffusion_jax.main --workdir runs/digits_unclip --mode sample --prior runs/digits_prior --prompt "a handwritten two"

and `--mode evaluate --metric clip --features runs/digits_clip --prior ...` says how often a caption is found among ten.

The decoder sees the CLIP's embedding of an image (dropped in one case of ten) and its caption (in one of two). `:prior` is the
diffusion prior, `:ar` the autoregressive one; `--prior text` gives the decoder the embedding of the text itself, and
`--prior caption` none. `:upsample` (--upsampler) makes 16x16 of 8x8 that are blurred or worse (`:upsample,bsr`).

Hardware: 2 CPU cores, half an hour beside other work. Expect, already of a decoder of 300 steps (lr 2e-3) and of priors of 400
(`:ar`: 300, width 64, depth 2), at `--steps 15 --guidance 2`, the own caption first of ten in 0.83 of 100 samples with
`--prior caption`, 1.00 with `--prior text`, 1.00 with the diffusion prior, and 0.58 with so short an autoregressive one.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny, variant

CONTEXT, FEATURES, WIDTH, SIZE = 24, 64, 32, 8
MODELS = "diffusion_jax.models"


def part(name: str) -> dict:
    """model and task of a part: '' the decoder, 'prior', 'ar' or 'upsample'."""
    diffusion = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion", shape=(SIZE, SIZE, 1),
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="squaredcos"),
        scale=dict(name="diffusion_jax.diffusion.scales:Eps"),
    )
    unet = dict(name=f"{MODELS}.unet:UNet", width=WIDTH, depth=1, heads=2, groups=8, channels=1)
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
        net = unet | dict(mults=(1, 2), attend=(), mid_attention=False, learn_sigma=False)
        return dict(model=net, task=diffusion | dict(cond=cond, shape=(2 * SIZE, 2 * SIZE, 1)))
    cond = dict(name=f"{MODELS}.unclip:ImageText", features=FEATURES, out=4 * WIDTH, width=64)
    ways = dict(variance="learned_range", objective="hybrid", drop=dict(with_image=0.1, with_text=0.5))
    return dict(model=unet | dict(mults=(1, 2), attend=(1, 2), learn_sigma=True), task=diffusion | ways | dict(cond=cond))


def get_config(arg: str = "") -> ConfigDict:
    """The page of a part, see `part`; `configs/digits_unclip.py:tiny` and `:prior,tiny` run in seconds."""
    name = arg.removesuffix("tiny").removesuffix(",")
    variant(name, "", "prior", "ar", "upsample", "upsample,bsr")
    config = ConfigDict(part(name))
    config.seed = 0
    size = config.task.shape[0] if name.startswith("upsample") else SIZE
    digits = "diffusion_jax.data.digits:Digits"
    config.data = dict(
        train=dict(name=digits, split="train"), test=dict(name=digits, split="test"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=size, channels=1),
    )
    if not name.startswith("upsample"):
        config.first_stage = "runs/digits_clip"
    config.batch = 64
    config.accumulate = 1
    config.steps = 500 if name.startswith("upsample") else 1500
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-3, schedule="cosine", warmup=50, steps=config.steps,
        clip=1.0, weight_decay=6e-2 if name in ("prior", "ar") else 0.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=500, keep=2)
    config.log_every = 50
    config.evaluate = dict(num=0)
    config.validate = dict(every=100)
    if name != "ar":
        config.sample = dict(num=100, every=500, sampler="ddim", steps=27, times="respace", clip=1.0, guidance=2.0)
        config.evaluate.guidance = 1.0
    if name == "prior":
        config.sample.update(sampler="ancestral", steps=64, times="respace", clip=5.0, guidance=1.0)
    if name.startswith("upsample"):
        config.sample.guidance = 1.0
    if arg.endswith("tiny"):
        small(config, name)
    config.data.decode.tokenizer = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", merges="", context=CONTEXT)
    return config


def small(config: ConfigDict, name: str) -> None:
    """The page at a size that trains in seconds."""
    nets = dict(prior=dict(width=16, layers=1, heads=2), ar=dict(width=16, depth=1, heads=2))
    net = nets.get(name, dict(width=16, mults=(1,), attend=(1,) if config.model.get("attend") else ()))
    shape, size = config.task.get("shape"), config.data.decode.size
    tiny(config, model=net, cond=dict(out=64) if name == "" else {})
    config.data.decode.size, config.evaluate.num = size, 0
    if name == "ar":
        del config.task.shape
    else:
        config.task.shape = shape
