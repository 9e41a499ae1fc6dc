"""CIFAR-10 at 32x32, class-conditional ADM: the UNet and recipe of improved DDPM (2102.09672) with ADM's blocks (2105.05233).

    python -m diffusion_jax.main --config configs/cifar10_adm.py --workdir runs/cifar10_adm

reads cifar10 from TFDS (data_dir ~/tensorflow_datasets); a folder of class sheets, train_<class>.jpg, is the page's argument:

    python -m diffusion_jax.main --config configs/cifar10_adm.py:../shared/data/cifar10 --workdir runs/cifar10_adm

with configs/cifar10_classifier.py as its guide:

    python -m diffusion_jax.main --workdir runs/cifar10_adm --mode sample --sampler ancestral --classifier runs/cifar10_classifier

From improved DDPM it differs by the resampling of its blocks, by 1,000 steps of noise in place of 4,000, and by labels, of which
a tenth is dropped for guidance without a classifier. Hardware: one accelerator with 16 GB. This page has not been run to its end:
it promises no number yet.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny


def source(arg: str, split: str) -> dict:
    """TFDS, or the sheets in the folder `arg`."""
    if arg in ("", "tiny"):
        return dict(name="diffusion_jax.data.tfds:TFDS", dataset="cifar10", split=split)
    return dict(name="diffusion_jax.data.arrays:Tiles", path=arg, split=split)


def get_config(arg: str = "") -> ConfigDict:
    """The page; `:tiny` runs in seconds, any other argument is the folder of the sheets."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.unet:UNet", width=128, mults=(1, 2, 2, 2), depth=3, attend=(2, 4), heads=4, dropout=0.3,
        channels=3, learn_sigma=True, dtype="bfloat16",
    )
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.cond:Label", num_classes=10, width=512, std=1.0),
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="squaredcos"),
        scale=dict(name="diffusion_jax.diffusion.scales:Eps"),
        shape=(32, 32, 3),
        drop=dict(label=0.1),
        variance="learned_range",
        objective="hybrid",
    )
    config.data = dict(
        train=source(arg, "train"),
        test=source(arg, "test"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=32, flip=True),
    )
    config.batch = 128
    config.accumulate = 1
    config.steps = 500_000
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-4, schedule="constant", weight_decay=0.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.9999, warmup=False))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=5000, keep=3)
    config.log_every = 100
    config.sample = dict(num=100, every=10_000, sampler="ddim", steps=50, times="uniform", guidance=1.0, clip=1.0)
    config.evaluate = dict(num=0, guidance=1.0, features="", every=0, samples=200)
    config.validate = dict(every=1000)
    if arg == "tiny":
        return tiny(config, model=dict(width=32, mults=(1,), depth=1, attend=(1,), channels=1), cond=dict(width=128))
    return config
