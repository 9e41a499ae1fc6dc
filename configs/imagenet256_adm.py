"""ImageNet 256x256 on pixels, class-conditional ADM: the UNet and recipe of arXiv 2105.05233 (554 million parameters).

    python -m diffusion_jax.main --config configs/imagenet256_adm.py --workdir runs/adm256
    python -m diffusion_jax.main --mode plan --config configs/imagenet256_adm.py --workdir runs/plan --topology v5e:16x16

AdamW at a constant 1e-4, batch 256, EMA 0.9999 from the first step on, linear noise, learned variance with the hybrid loss.
Layers and labels start as PyTorch's do (diffusion_jax/nn/init.py), which is what the published code leaves them to. Hardware: a
TPU slice; which layout fits, the second line says. The paper reaches FID 10.94 after 1.98 M steps, 4.59 with a classifier's
guidance; this page has not been run and promises no number.
"""
from ml_collections import ConfigDict

from diffusion_jax.models.unet import preset
from diffusion_jax.runs.page import tiny, variant


def get_config(arg: str = "") -> ConfigDict:
    """The page; `:tiny` runs in seconds."""
    variant(arg, "", "tiny")
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.unet:UNet", **preset("adm-imagenet256"), channels=3, learn_sigma=True, dtype="bfloat16",
        remat="full",
    )
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.cond:Label", num_classes=1000, width=1024, std=1.0),
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="linear"),
        scale=dict(name="diffusion_jax.diffusion.scales:Eps"),
        shape=(256, 256, 3),
        variance="learned_range",
        objective="hybrid",
    )
    config.data = dict(
        train=dict(name="diffusion_jax.data.tfds:TFDS", dataset="imagenet2012", split="train"),
        test=dict(name="diffusion_jax.data.tfds:TFDS", dataset="imagenet2012", split="validation"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=256, flip=True),
    )
    config.batch = 256
    config.accumulate = 1
    config.steps = 1_980_000
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-4, schedule="constant", weight_decay=0.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.9999, warmup=False))
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    config.sharding = ((".*", "fsdp"),)
    config.checkpoint = dict(every=20_000, keep=2, keep_every=200_000)
    config.log_every = 100
    config.sample = dict(num=64, every=20_000, sampler="ancestral", steps=250, times="respace", guidance=1.0, clip=1.0)
    config.evaluate = dict(num=0, guidance=1.0)
    if arg == "tiny":
        size = dict(width=32, mults=(1,), depth=1, attend=(1,), head_channels=32, channels=1, dtype="float32")
        return tiny(config, model=size, cond=dict(width=128))
    return config
