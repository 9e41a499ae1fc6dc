"""Oxford-102 flowers at 64x64, class-conditional DiT in the latents of configs/flowers102_vae.py.

    python -m diffusion_jax.main --mode encode --workdir runs/flowers_vae --out runs/flowers_latents
    python -m diffusion_jax.main --config configs/flowers102_ldm.py:runs/flowers_latents --workdir runs/flowers_ldm

The argument is the folder of latents; the autoencoder lies in it and becomes part of the run, so that runs/flowers_ldm alone
samples images. The latents have deviation 1 in each channel. Without an argument the folder is runs/flowers_latents.
Hardware: 2 CPU cores for trying out, an accelerator for flowers. It has not been run to its end: this page promises no number.
A smaller network (--config.model.width=128 --config.model.depth=4 --config.model.heads=4 --config.task.cond.width=128, batch 32,
lr 1e-3) shows after 850 steps petals in the colours of their classes against green, and no whole flowers yet.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny


def get_config(arg: str = "") -> ConfigDict:
    """The page; the argument is the folder of latents, `:tiny` trains on pixels and runs in seconds."""
    folder = arg if arg not in ("", "tiny") else "runs/flowers_latents"
    config = ConfigDict()
    config.seed = 0
    config.model = dict(name="diffusion_jax.models.dit:DiT", width=192, depth=6, heads=6, patch=2, channels=3, learn_sigma=False)
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.cond:Label", num_classes=102, width=192),
        process=dict(name="diffusion_jax.diffusion.process:Flow"),
        scale=dict(name="diffusion_jax.diffusion.scales:Velocity"),
        shape=(16, 16, 3),
        times=dict(name="diffusion_jax.diffusion.times:LogitNormal"),
        drop=dict(label=0.1),
    )
    latents = "diffusion_jax.data.latents:Latents"
    config.data = dict(
        train=dict(name=latents, path=folder, split="train"), test=dict(name=latents, path=folder, split="test"),
        decode=dict(name="diffusion_jax.data.latents:Draw", path=folder),
    )
    config.first_stage = f"{folder}/first_stage"
    config.batch = 64
    config.accumulate = 1
    config.steps = 20_000
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=5e-4, schedule="constant", warmup=100, clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.999))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=500, keep=2)
    config.log_every = 50
    config.sample = dict(num=32, every=5000, sampler="heun", steps=15, times="uniform", guidance=2.0)
    config.evaluate = dict(num=0, guidance=1.0)
    config.validate = dict(every=1000)
    if arg == "tiny":
        del config.first_stage
        return tiny(config, model=dict(width=32, depth=1, heads=4, channels=1), cond=dict(width=32))
    return config
