"""Oxford-102 flowers at 64x64 or 128x128: the classifier whose features measure configs/flowers102_tae.py.

    python -m diffusion_jax.main --config configs/flowers102_classifier.py:../shared/data/flowers102 \\
        --workdir runs/flowers_classifier

reads images128.zip and labels.json in the folder that is the page's argument, or oxford_flowers102 from TFDS without one;
--config.size=128 sees larger ones. It learns from the pictures that generators learn from and from none that is held out, almost
without noise: it is no guide. In its features samples are measured against the training pictures:

    python -m diffusion_jax.main --workdir runs/flowers64 --mode evaluate --features runs/flowers_classifier --num 2000

Hardware: 2 CPU cores, 20 minutes. Expect of --config.steps=1000 --config.optim.steps=1000 that it knows 0.183 of 818 held-out
flowers (chance is 0.010; loss 3.07 and falling). The whole page has not been run.
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


def get_config(arg: str = "", size: int = 64) -> ConfigDict:
    """The page; `:tiny` runs in seconds, any other argument is the folder of the archive. Pictures are of `size`, 64 or 128."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.classifier:Classifier", width=32, mults=(0.5, 1, 2, 4) if size == 64 else (0.25, 0.5, 1, 2, 4),
        depth=1, attend=(), mid_attention=False, resample="conv", groups=8, dropout=0.2, num_classes=102, pool="adaptive",
    )
    config.task = dict(
        name="diffusion_jax.tasks.classifier:NoisyClassifier",
        process=dict(name="diffusion_jax.diffusion.process:EDM"),
        shape=(size, size, 3),
        times=dict(name="diffusion_jax.diffusion.times:LogNormal", mean=-3.0, std=1.0),
    )
    config.data = dict(
        train=source(arg, "train+test", "train"), test=source(arg, "validation", "val"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=size, flip=True),
    )
    config.batch = 64
    config.accumulate = 1
    config.steps = 1500
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=2e-3, schedule="cosine", warmup=100, steps=1500,
        weight_decay=0.05, clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=250, keep=2)
    config.log_every = 50
    config.evaluate = dict(num=818)
    config.validate = dict(every=250, num=818)
    if arg == "tiny":
        return tiny(config, model=dict(width=16, mults=(1,), depth=1), cond={})
    return config
