"""CIFAR-10 at 32x32: the noisy classifier that guides configs/cifar10_adm.py (2105.05233 section 4).

    python -m diffusion_jax.main --config configs/cifar10_classifier.py --workdir runs/cifar10_classifier

reads cifar10 from TFDS (data_dir ~/tensorflow_datasets); a folder of class sheets, train_<class>.jpg, is the page's argument:

    python -m diffusion_jax.main --config configs/cifar10_classifier.py:../shared/data/cifar10 --workdir runs/cifar10_classifier

Hardware: one accelerator with 16 GB. This page has not been run to its end: it promises no number yet.
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
        name="diffusion_jax.models.classifier:Classifier", width=64, mults=(1, 2, 3, 4), depth=2, attend=(2, 4), head_channels=64,
        dropout=0.1, num_classes=10, pool="attention", dtype="bfloat16",
    )
    config.task = dict(
        name="diffusion_jax.tasks.classifier:NoisyClassifier",
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="squaredcos"),
        shape=(32, 32, 3),
    )
    config.data = dict(
        train=source(arg, "train"),
        test=source(arg, "test"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=32, flip=True),
    )
    config.batch = 256
    config.accumulate = 1
    config.steps = 50_000
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=3e-4, schedule="cosine", warmup=1000, steps=50_000,
        weight_decay=0.05,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.9999))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=5000, keep=3)
    config.log_every = 100
    config.evaluate = dict(num=10_000)
    config.validate = dict(every=1000)
    if arg == "tiny":
        return tiny(config, model=dict(width=32, mults=(1,), depth=1, attend=(1,), head_channels=16), cond={})
    return config
