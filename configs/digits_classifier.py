"""Handwritten digits, 8x8: the noisy classifier that guides configs/digits_adm.py.

    python -m diffusion_jax.main --config configs/digits_classifier.py --workdir runs/digits_classifier

Hardware: 2 CPU cores, 2 and a half minutes beside other work. Expect, on the 297 held-out digits, accuracy 0.99 on clean images,
0.91 at 0.4 and 0.61 at 0.6 of the noisiest time.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny, variant


def get_config(arg: str = "") -> ConfigDict:
    """The page; `configs/digits_classifier.py:tiny` runs in seconds."""
    variant(arg, "", "tiny")
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.classifier:Classifier", width=32, mults=(1, 2), depth=1, attend=(2,), heads=2, groups=8,
        dropout=0.1, num_classes=10, pool="attention",
    )
    config.task = dict(
        name="diffusion_jax.tasks.classifier:NoisyClassifier",
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="squaredcos"),
        shape=(8, 8, 1),
    )
    config.data = dict(
        train=dict(name="diffusion_jax.data.digits:Digits", split="train"),
        test=dict(name="diffusion_jax.data.digits:Digits", split="test"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=8, channels=1),
    )
    config.batch = 128
    config.accumulate = 1
    config.steps = 500
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-3, schedule="cosine", warmup=50, steps=500,
        weight_decay=0.05, clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=250, keep=3)
    config.log_every = 50
    config.evaluate = dict(num=297)
    config.validate = dict(every=100)
    if arg == "tiny":
        return tiny(config, model=dict(width=16, mults=(1,), attend=(1,)), cond={})
    return config
