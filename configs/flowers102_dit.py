"""Oxford-102 flowers at 64x64, class-conditional DiT-B/4 in pixel space.

    python -m diffusion_jax.main --config configs/flowers102_dit.py --workdir runs/flowers

reads oxford_flowers102 from TFDS (data_dir ~/tensorflow_datasets); a folder with images128.zip and labels.json is given as the
page's argument:

    python -m diffusion_jax.main --config configs/flowers102_dit.py:../shared/data/flowers102 --workdir runs/flowers

What a trained model does between conditions; each command writes a grid, a row for each value, and an animation (out.gif, and
out.mp4 with pip install imageio-ffmpeg). Class 73 is a rose, 53 a sunflower; flower.png is a picture of 64x64. They are for any
model of flowers, runs/flowers_ldm of configs/flowers102_ldm.py too. The first k of 50 steps as a rose, the rest as a sunflower:

    python -m diffusion_jax.main --workdir runs/flowers --mode edit --op switch --label 73 --to_label 53 --sampler ddim \\
        --steps 50 --values 0,5,10,15,20,25,30,35,40,45,50

from a picture (0) over ever more noise to the class alone (1), and beside it from one embedded class to another:

    python -m diffusion_jax.main --workdir runs/flowers --mode edit --op strength --images flower.png --label 53 \\
        --values 0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1
    python -m diffusion_jax.main --workdir runs/flowers --mode edit --op mix --label 73 --to_label 53 \\
        --values 0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1

scales of guidance, and its rescaled phi:

    python -m diffusion_jax.main --workdir runs/flowers --mode edit --op guidance --label 73 --values -10,-8,-6,-4,-2,0,2,4,6,8,10
    python -m diffusion_jax.main --workdir runs/flowers --mode edit --op phi --guidance 3 --label 73 \\
        --values -10,-8,-6,-4,-2,0,2,4,6,8,10

and a picture up to noise and back:

    python -m diffusion_jax.main --workdir runs/flowers --mode edit --op invert --images flower.png --label 53 --sampler ddim \\
        --steps 100

With runs/flowers_ldm at step 800 the noise stays and yellow turns red where the switch comes at 8 to 12 of 20 steps; guidance
runs from violet at -10 to red at 10; pictures come back from 50 steps of noise within 4.7 of 255 on average.

Hardware: one accelerator with 16 GB. This page has not been run to its end: it promises no number yet.
"""
from ml_collections import ConfigDict

from diffusion_jax.models.dit import preset
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
    config.model = dict(name="diffusion_jax.models.dit:DiT", **preset("DiT-B/4"), channels=3, learn_sigma=False, dtype="bfloat16")
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.cond:Label", num_classes=102, width=768),
        process=dict(name="diffusion_jax.diffusion.process:Flow"),
        scale=dict(name="diffusion_jax.diffusion.scales:Velocity"),
        shape=(64, 64, 3),
        times=dict(name="diffusion_jax.diffusion.times:LogitNormal"),
        drop=dict(label=0.1),
    )
    config.data = dict(
        train=source(arg, "train+test", "train"),
        test=source(arg, "validation", "val"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=64, flip=True),
    )
    config.batch = 256
    config.accumulate = 1
    config.steps = 100_000
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=2e-4, schedule="constant", warmup=5000, clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.9999))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=5000, keep=3)
    config.log_every = 100
    config.sample = dict(num=64, every=5000, sampler="heun", steps=25, times="uniform", guidance=3.0)
    config.evaluate = dict(num=0, guidance=1.0, features="", every=0, samples=200)
    config.validate = dict(every=1000)
    if arg == "tiny":
        return tiny(config, model=dict(width=32, depth=1, heads=4, patch=2, channels=1), cond=dict(width=32))
    return config
