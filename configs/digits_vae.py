"""Handwritten digits, 8x8: a KL autoencoder, or a VQ, that makes latents of 4x4 of them, trained against a discriminator.

    python -m diffusion_jax.main --config configs/digits_vae.py --workdir runs/digits_vae
    python -m diffusion_jax.main --config configs/digits_vae.py:vq --workdir runs/digits_vq

The images are too small for a perceptual distance: the loss is of pixels and, from half of the run on, of the discriminator.
Hardware: 2 CPU cores, minutes. Expect of the VQ after 400 steps of batch 32 (disc_start 200, ramp and lead 50) PSNR 21.7 dB, all
64 codes in use and a perplexity of 44; it stood at 18.3 dB when the discriminator started. The whole page has not been run.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny, variant

STEPS = 1000


def get_config(arg: str = "") -> ConfigDict:
    """The page; `:vq` for a codebook, `:tiny` runs in seconds."""
    variant(arg, "", "tiny", "vq")
    config = ConfigDict()
    config.seed = 0
    kind = dict(name="diffusion_jax.models.vae:VQ", codes=64) if arg == "vq" else dict(name="diffusion_jax.models.vae:KL")
    config.model = dict(**kind, channels=1, latent=2, width=16, mults=(1, 2), depth=1, groups=8)
    config.task = dict(
        name="diffusion_jax.tasks.autoencoder:Autoencoder", shape=(8, 8, 1), weight=1.0 if arg == "vq" else 1e-4,
        losses=dict(
            name="diffusion_jax.tasks.autoencoder_loss:Losses", pixel="l2", disc_weight=0.1, disc_start=STEPS // 2,
            ramp=STEPS // 10, lead=STEPS // 10, limit=10.0,
            disc=dict(name="diffusion_jax.models.gan:Discriminator", width=16, depth=1),
        ),
    )
    config.data = dict(
        train=dict(name="diffusion_jax.data.digits:Digits", split="train"),
        test=dict(name="diffusion_jax.data.digits:Digits", split="test"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=8, channels=1),
    )
    config.batch = 64
    config.accumulate = 1
    config.steps = STEPS
    adam = dict(name="diffusion_jax.train.optim:optimizer", method="adam", lr=2e-3, b1=0.5, b2=0.9, clip=1.0)
    config.optim = dict(name="diffusion_jax.train.optim:partition", parts=dict(model=adam, disc={**adam, "lr": 5e-4}))
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=250, keep=3)
    config.log_every = 20
    config.evaluate = dict(num=0)
    config.validate = dict(every=100)
    if arg == "tiny":
        tiny(config, model=dict(width=8), cond={})
        config.evaluate.num = 0
    return config
