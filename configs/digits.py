"""Handwritten digits, 8x8, class-conditional: the quick start. Nothing is downloaded.

    python -m diffusion_jax.main --config configs/digits.py --workdir runs/digits

Hardware: 2 CPU cores, about 3 minutes. Expect, of 1,000 samples at guidance 1: accuracy[pixel SVC] 0.98, novelty[pixels] 1.1.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny, variant


def get_config(arg: str = "") -> ConfigDict:
    """The page; `configs/digits.py:tiny` runs in seconds."""
    variant(arg, "", "tiny")
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.dit:DiT", patch=2, width=96, depth=4, heads=4, channels=1, learn_sigma=False, scan=True,
        remat="full",
    )
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.cond:Label", num_classes=10, width=96),
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="squaredcos"),
        scale=dict(name="diffusion_jax.diffusion.scales:V"),
        shape=(8, 8, 1),
        drop=dict(label=0.1),
    )
    config.data = dict(
        train=dict(name="diffusion_jax.data.digits:Digits", split="train"),
        test=dict(name="diffusion_jax.data.digits:Digits", split="test"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=8, channels=1),
    )
    config.batch = 128
    config.accumulate = 1
    config.steps = 1000
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=3e-3, schedule="cosine", warmup=100, steps=1000, clip=1.0,
        powersgd=0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.995))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=500, keep=3)
    config.log_every = 50
    config.sample = dict(num=100, every=500, sampler="ddim", steps=50, times="uniform", guidance=1.0)
    config.evaluate = dict(num=1000, guidance=1.0, features="", every=500, samples=200)
    config.validate = dict(every=100)
    if arg == "tiny":
        return tiny(config, model=dict(width=32, depth=1), cond=dict(width=32))
    return config
