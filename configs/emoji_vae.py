"""Emoji at 32x32: a small KL autoencoder whose latents are 8x8x4, the first stage of configs/emoji_ldm.py.

    python -m diffusion_jax.main --config configs/emoji_vae.py:../shared/data/emoji --workdir runs/emoji_vae
    python -m diffusion_jax.main --mode encode --workdir runs/emoji_vae --out runs/emoji_latents

reads emoji64.npz and captions.json in the folder that is the page's argument. Flat colours and sharp edges are left to the
pixels, to LPIPS where `pip install 'diffusion_jax[lpips]'` has its weights (runs/lpips.py) and, from half of the run on, to the
discriminator. At a weight of 1 the gradient of the pixels in the parameters as they are drawn was 1.01 times as long as that of
LPIPS (8 emoji).

Hardware: 2 CPU cores, five minutes on one of them, twelve with LPIPS. Expect on the 354 held-out pictures (--mode likelihood)
PSNR 19.6 dB, SSIM 0.68 and LPIPS (vgg) 0.16 with LPIPS, without it 19.8 dB (another run 20.5), 0.70 and 0.27; per batch
without it 17.0 dB when the discriminator starts, 18.7 while its weight rises, 19.5 at the end.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.lpips import where_installed
from diffusion_jax.runs.page import tiny

STEPS = 800


def source(folder: str, split: str) -> dict:
    """The emoji of a split."""
    return dict(name="diffusion_jax.data.arrays:Arrays", path=f"{folder}/emoji64.npz", meta=("captions.json",), split=split)


def get_config(arg: str = "") -> ConfigDict:
    """The page; `:tiny` runs in seconds, any other argument is the folder of the emoji."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(name="diffusion_jax.models.vae:KL", latent=4, width=24, mults=(1, 2, 2), depth=1, groups=8)
    config.task = dict(
        name="diffusion_jax.tasks.autoencoder:Autoencoder", shape=(32, 32, 3), weight=1e-4,
        losses=dict(
            name="diffusion_jax.tasks.autoencoder_loss:Losses", disc_weight=0.1, disc_start=STEPS // 2, ramp=STEPS // 10,
            lead=STEPS // 10, limit=10.0, disc=dict(name="diffusion_jax.models.gan:Discriminator", width=16, depth=2),
        ),
    )
    config.data = dict(
        train=source(arg, "train"), test=source(arg, "val"), decode=dict(name="diffusion_jax.data.image:Decode", size=32),
    )
    config.batch = 16
    config.accumulate = 1
    config.steps = STEPS
    adam = dict(name="diffusion_jax.train.optim:optimizer", method="adam", lr=2e-3, warmup=50, b1=0.5, b2=0.9, clip=1.0)
    config.optim = dict(name="diffusion_jax.train.optim:partition", parts=dict(model=adam, disc={**adam, "lr": 2e-4}))
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=250, keep=2)
    config.log_every = 25
    config.evaluate = dict(num=0)
    config.validate = dict(every=100)
    if arg == "tiny":
        config.task.losses.disc.update(width=8, depth=1)
        tiny(config, model=dict(width=8, mults=(1, 2), groups=4, channels=1), cond={})
        config.evaluate.num = 0
        return config
    return where_installed(config, weight=1.0)
