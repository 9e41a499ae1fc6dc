"""Handwritten digits, 8x8: the ladder of EDM2, A (ADM's UNet in EDM's form) to G (EDM2), see diffusion_jax/models/edm2.py.

    python -m diffusion_jax.main --config configs/digits_edm2.py --workdir runs/digits_edm2
    launch/ladder.sh runs/ladder                            # A to G, and their table

`configs/digits_edm2.py:A` to `:G` are the steps; without a letter G. What changes from step to step beside the network:

    A   Adam at a constant rate, ln(sigma) ~ N(-1.2, 1.2), attention at 8x8 and 4x4
    B   ln(sigma) ~ N(-0.4, 1), uncertainty in the loss, b2 = 0.99, attention at 4x4
    D   ten times the rate, which normalised weights bear
    E   forced weight normalisation, inverse square root decay of the rate

Adam's eps is that of a loss summed over the 64 pixels, as EDM's and EDM2's is: 1e-8 / 64 on their mean.

Four averages are tracked, so that those made after training of the snapshots of two of them can be compared with the others.
Hardware: 2 CPU cores, 3 minutes a step of the ladder, half an hour for all and their measurement (beside other work). Expect, of
1,000 samples in the features of configs/digits_classifier.py, FID[digits_classifier] 0.36 for A, 0.22 for B and 0.43 for G; the
whole table is in docs/experiments.md.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny, variant

STEPS = 600


def get_config(arg: str = "G") -> ConfigDict:
    """The page; `configs/digits_edm2.py:tiny` runs in seconds."""
    variant(arg, "", "tiny", *"ABCDEFG")
    letter = "G" if arg in ("", "tiny") else arg
    normalised, forced = letter >= "D", letter >= "E"
    mean, std = (-1.2, 1.2) if letter == "A" else (-0.4, 1.0)
    decay = dict(schedule="inverse_sqrt", ref=STEPS // 4) if forced else dict(schedule="constant")
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.edm2:EDM2", ladder=letter, width=24, mults=(1, 2), depth=1, head_channels=24, channels=1,
        attend=(1, 2) if letter == "A" else (2,),
    )
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.cond:OneHot", num_classes=10, width=48, normalised=normalised),
        process=dict(name="diffusion_jax.diffusion.process:EDM"),
        scale=dict(name="diffusion_jax.diffusion.scales:EDM", sigma_data=0.75),
        shape=(8, 8, 1),
        times=dict(name="diffusion_jax.diffusion.times:LogNormal", mean=mean, std=std),
        drop=dict(label=0.1),
        forced=forced,
    )
    if letter > "A":
        config.task.uncertainty = dict(name="diffusion_jax.models.edm2:Uncertainty", features=32)
    config.data = dict(
        train=dict(name="diffusion_jax.data.digits:Digits", split="train"),
        test=dict(name="diffusion_jax.data.digits:Digits", split="test"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=8, channels=1),
    )
    config.batch = 64
    config.accumulate = 1
    config.steps = STEPS
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adam", lr=1e-2 if normalised else 1e-3, warmup=50,
        b2=0.999 if letter == "A" else 0.99, eps=1e-8 / 64, **decay,
    )
    power = "diffusion_jax.train.ema:Power"
    config.ema = dict(
        ema=dict(name=power, std=0.10), short=dict(name=power, std=0.05), between=dict(name=power, std=0.075),
        long=dict(name=power, std=0.15),
    )
    config.snapshots = dict(every=STEPS // 20, averages=("ema", "short"))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=100, keep=2, keep_every=100)
    config.log_every = 50
    config.sample = dict(num=100, every=STEPS, sampler="edm", steps=18, times="karras", guidance=1.0)
    config.evaluate = dict(num=0, guidance=1.0, features="", every=0, samples=200)
    config.validate = dict(every=100)
    if arg == "tiny":
        return tiny(config, model=dict(width=8, head_channels=8), cond=dict(width=16))
    return config
