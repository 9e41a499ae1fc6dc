"""CIFAR-10 at 32x32, class-conditional DiffiT in image space (arXiv 2312.02139): a U of convolutions and windowed attention.

    python -m diffusion_jax.main --config configs/cifar10_diffit.py --workdir runs/cifar10_diffit

reads cifar10 from TFDS (data_dir ~/tensorflow_datasets); a folder of class sheets, train_<class>.jpg, is the page's argument:

    python -m diffusion_jax.main --config configs/cifar10_diffit.py:../shared/data/cifar10 --workdir runs/cifar10_diffit

The authors report FID 1.95, but neither their sizes nor their training are public. Here the network has 28 M parameters (see
models/diffit_image.py for what is our choice in it), and process, loss and sampler are those of configs/cifar10_adm.py, so that
the two pages compare the networks.

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
        name="diffusion_jax.models.diffit_image:ImageDiffiT", width=128, mults=(1, 2, 2), depth=4, windows=(8, 8, 8),
        head_channels=32, channels=3, learn_sigma=True, dtype="bfloat16",
    )
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.cond:Label", num_classes=10, width=512),
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
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-4, schedule="constant", weight_decay=0.0, warmup=5000,
        clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.9999))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=5000, keep=3)
    config.log_every = 100
    config.sample = dict(num=100, every=10_000, sampler="ddim", steps=50, times="uniform", guidance=1.0, clip=1.0)
    config.evaluate = dict(num=0, guidance=1.0, features="", every=0, samples=200)
    config.validate = dict(every=1000)
    if arg == "tiny":
        model = dict(width=32, mults=(1, 2), depth=1, windows=(4, 4), head_channels=16, channels=1)
        return tiny(config, model=model, cond=dict(width=128))
    return config
