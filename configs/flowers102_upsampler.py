"""Oxford-102 flowers, 64x64 -> 128x128: an ADM upsampler with conditioning augmentation (2105.05233 section 6, 2106.15282).

    python -m diffusion_jax.main --config configs/flowers102_upsampler.py --workdir runs/flowers_up

reads oxford_flowers102 from TFDS (data_dir ~/tensorflow_datasets); a folder with images128.zip and labels.json is given as the
page's argument:

    python -m diffusion_jax.main --config configs/flowers102_upsampler.py:../shared/data/flowers102 --workdir runs/flowers_up

and the cascade with configs/flowers102_dit.py is sampled by

    python -m diffusion_jax.main --workdir runs/flowers --mode sample --upsampler runs/flowers_up --out flowers.png

Hardware: one accelerator with 16 GB. This page has not been run to its end: it promises no number yet.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny


def source(arg: str, split: str, local_split: str) -> dict:
    """TFDS, or the archive in the folder `arg`."""
    if arg in ("", "tiny"):
        return dict(name="diffusion_jax.data.tfds:TFDS", dataset="oxford_flowers102", split=split)
    return dict(
        name="diffusion_jax.data.arrays:Arrays", path=f"{arg}/images128.zip", meta=("labels.json",), split=local_split,
        split_key="random_split",
    )


def get_config(arg: str = "") -> ConfigDict:
    """The page; `:tiny` runs in seconds, any other argument is the folder of the archive."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.unet:UNet", width=96, mults=(1, 1, 2, 3, 4), depth=2, attend=(8, 16), head_channels=48,
        channels=3, learn_sigma=True, dtype="bfloat16", remat="dots",
    )
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.cond:LowRes", factor=2, augment=0.3, width=384),
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="linear"),
        scale=dict(name="diffusion_jax.diffusion.scales:Eps"),
        shape=(128, 128, 3),
        variance="learned_range",
        objective="hybrid",
    )
    config.data = dict(
        train=source(arg, "train+test", "train"),
        test=source(arg, "validation", "val"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=128, flip=True),
    )
    config.batch = 64
    config.accumulate = 1
    config.steps = 100_000
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-4, schedule="constant", warmup=1000, clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.9999))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=5000, keep=3)
    config.log_every = 100
    config.sample = dict(num=16, every=5000, sampler="ddim", steps=50, times="uniform", clip=1.0, augment=0.1)
    config.evaluate = dict(num=0, guidance=1.0, features="", every=0, samples=200)
    config.validate = dict(every=1000)
    if arg == "tiny":
        return tiny(
            config, model=dict(width=32, mults=(1,), depth=1, attend=(1,), head_channels=16, channels=1), cond=dict(width=128),
        )
    return config
