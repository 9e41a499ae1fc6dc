"""Handwritten digits, 8x8, in 1, 2 or 4 steps: consistency models (2303.01469, 2310.14189, 2406.14548).

    python -m diffusion_jax.main --config configs/digits_consistency.py --workdir runs/digits_consistency
    python -m diffusion_jax.main --config configs/digits_consistency.py:distilled --workdir runs/digits_distilled

The first is trained from scratch. `:distilled` begins from and learns from runs/digits, the run of configs/digits.py, or
from another (--config.teacher=FOLDER --config.init=FOLDER). They sample in one to four steps: --mode sample --steps 1

Hardware: 2 CPU cores, minutes: 43 of the first and about 40 of `:distilled` beside twenty other programs, not timed alone.
Expect, of 1,000 samples in 1, 2 and 4 steps, the FID[digits_classifier] of docs/few_steps.md: 1.35, 0.79 and 0.80, distilled
0.59, 0.30 and 0.29, where the teacher has 0.36 in 50 steps.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny, variant

TEACHER = "runs/digits"


def get_config(arg: str = "") -> ConfigDict:
    """The page; `:distilled` learns from the run of configs/digits.py, `:tiny` runs in seconds."""
    variant(arg, "", "distilled", "tiny")
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.dit:DiT", patch=2, width=96, depth=4, heads=4, channels=1, learn_sigma=False, scan=True,
        remat="full",
    )
    config.task = dict(
        name="diffusion_jax.tasks.consistency:Consistency",
        cond=dict(name="diffusion_jax.models.cond:Label", num_classes=10, width=96),
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="squaredcos"),
        scale=dict(name="diffusion_jax.diffusion.scales:V"),
        shape=(8, 8, 1),
        every=25_000,
        halvings=6,
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
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=2e-3, schedule="cosine", warmup=100, steps=1000, clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=500, keep=2)
    config.log_every = 50
    config.sample = dict(num=100, every=500, sampler="lcm", steps=2, times="trailing", guidance=1.0)
    config.evaluate = dict(num=1000, guidance=1.0, features="")
    if arg == "distilled":
        config.init = config.teacher = TEACHER
        config.task.every = 10_000
        config.steps = config.optim.steps = 500
        config.optim.lr = 1e-3
    if arg == "tiny":
        return tiny(config, model=dict(width=32, depth=1), cond=dict(width=32))
    return config
