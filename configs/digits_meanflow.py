"""Handwritten digits, 8x8, in 1, 2 or 4 steps: a mean flow (2505.13447).

    python -m diffusion_jax.main --config configs/digits_meanflow.py --workdir runs/digits_meanflow

It samples in one to four steps, --mode sample --steps 1, or as a flow, --sampler heun --steps 10.

Hardware: 2 CPU cores, 3 minutes beside other work (78 s of processor time). Expect, of 1,000 samples in 1, 2 and 4 steps,
the FID[digits_classifier] of docs/few_steps.md: 0.75, 0.48 and 0.41.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny, variant


def get_config(arg: str = "") -> ConfigDict:
    """The page; `configs/digits_meanflow.py:tiny` runs in seconds."""
    variant(arg, "", "tiny")
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.dit:DiT", patch=2, width=96, depth=4, heads=4, channels=1, learn_sigma=False, scan=True,
        interval=True, remat="full",
    )
    config.task = dict(
        name="diffusion_jax.tasks.meanflow:MeanFlow",
        cond=dict(name="diffusion_jax.models.cond:Label", num_classes=10, width=96),
        process=dict(name="diffusion_jax.diffusion.process:Flow"),
        scale=dict(name="diffusion_jax.diffusion.scales:Velocity"),
        shape=(8, 8, 1),
        times=dict(name="diffusion_jax.diffusion.times:LogitNormal", mean=-0.4, std=1.0),
        ratio=0.5,
        power=0.75,
    )
    config.data = dict(
        train=dict(name="diffusion_jax.data.digits:Digits", split="train"),
        test=dict(name="diffusion_jax.data.digits:Digits", split="test"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=8, channels=1),
    )
    config.batch = 64
    config.accumulate = 1
    config.steps = 800
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=2e-3, schedule="cosine", warmup=100, steps=800, clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=400, keep=2)
    config.log_every = 50
    config.sample = dict(num=100, every=400, sampler="meanflow", steps=2, times="uniform", guidance=1.0)
    config.evaluate = dict(num=1000, guidance=1.0, features="")
    if arg == "tiny":
        return tiny(config, model=dict(width=32, depth=1), cond=dict(width=32))
    return config
