"""Handwritten digits: latent diffusion (2112.10752) in the 4x4 latents of configs/digits_vae.py, told by their captions.

    python -m diffusion_jax.main --config configs/digits_vae.py --workdir runs/digits_vae
    python -m diffusion_jax.main --mode encode --workdir runs/digits_vae --out runs/digits_latents
    python -m diffusion_jax.main --config configs/digits_ldm.py --workdir runs/digits_ldm
    python -m diffusion_jax.main --workdir runs/digits_ldm --mode sample --prompt "a handwritten three" --guidance 3 --out 3.png

A UNet of latents under cross-attention to a text tower that learns with it, as Stable Diffusion's but small. The argument is the
folder of latents, runs/digits_latents without one; the autoencoder lies in it and becomes part of the run.

Hardware: 2 CPU cores, minutes. The whole page has not been run: it promises no number.
"""
from ml_collections import ConfigDict

from diffusion_jax.data.digits import WORDS
from diffusion_jax.runs.page import tiny

STEPS, WIDTH, LENGTH = 1500, 32, 3
TEXT = ("a", "handwritten", *WORDS)


def get_config(arg: str = "") -> ConfigDict:
    """The page; the argument is the folder of latents, `:tiny` trains on pixels and runs in seconds."""
    folder = arg if arg not in ("", "tiny") else "runs/digits_latents"
    tower = dict(
        name="diffusion_jax.models.clip:TextTower", features=None, vocab=len(TEXT) + 1, context=LENGTH, width=WIDTH, layers=2,
        heads=4,
    )
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.unet:UNet", width=WIDTH, mults=(1, 2), depth=1, attend=(1, 2), heads=4, groups=8,
        transformer=1, scale_shift=False, resample="conv", channels=2, learn_sigma=False,
    )
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.text_cond:TowerText", tower=tower, empty=(0,), context=LENGTH, frozen=False),
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="scaled_linear", start=0.00085, end=0.012),
        scale=dict(name="diffusion_jax.diffusion.scales:V"),
        shape=(4, 4, 2),
        drop=dict(tokens=0.1),
    )
    latents = "diffusion_jax.data.latents:Latents"
    config.data = dict(
        train=dict(name=latents, path=folder, split="train"), test=dict(name=latents, path=folder, split="test"),
        decode=dict(name="diffusion_jax.data.latents:Draw", path=folder),
    )
    config.first_stage = f"{folder}/first_stage"
    config.batch = 64
    config.accumulate = 1
    config.steps = STEPS
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-3, schedule="cosine", warmup=100, steps=STEPS, clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=500, keep=2)
    config.log_every = 50
    config.sample = dict(num=100, every=500, sampler="ddim", steps=25, times="uniform", guidance=2.0)
    config.evaluate = dict(num=0, guidance=1.0)
    config.validate = dict(every=100)
    if arg == "tiny":
        del config.first_stage
        tiny(config, model=dict(width=16, mults=(1,), attend=(1,), channels=1), cond={})
        config.task.cond.tower.update(width=16, layers=1, heads=2)
    config.data.decode.tokenizer = dict(name="diffusion_jax.data.words:Words", words=TEXT, length=LENGTH)
    return config
