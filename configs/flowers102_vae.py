"""Oxford-102 flowers at 64x64: a small KL autoencoder, or a VQ, whose latents are 16x16x3, trained against a patch discriminator.

    python -m diffusion_jax.main --config configs/flowers102_vae.py --workdir runs/flowers_vae
    python -m diffusion_jax.main --config configs/flowers102_vae.py:vq --workdir runs/flowers_vq

read oxford_flowers102 from TFDS; a folder with images128.zip and labels.json is given as the page's argument, with 'vq,' before
it for a VQ:

    python -m diffusion_jax.main --config configs/flowers102_vae.py:vq,../shared/data/flowers102 --workdir runs/flowers_vq

The perceptual distance is LPIPS where `pip install 'diffusion_jax[lpips]'` has its weights, and logged as lpips; without, a
small network with drawn weights, logged as untrained_features. LPIPS has a weight of 0.25: the gradient of the pixels in the
parameters as they are drawn was 0.27 times as long as that of LPIPS (the KL, 4 flowers). A run goes on with what it began with
(runs/lpips.py). A folder that `--mode import_weights --system perceptual` wrote may be config.first_stage too, and an empty
text is neither. The discriminator learns for 200 steps before the autoencoder hears of it, and its weight rises over 200 more:
reconstructions do not fall when it starts. Hardware: 2 CPU cores, an hour beside other work. Expect without LPIPS of the KL
after 600 steps (disc_start 300, ramp and lead 100) 20.5 dB of PSNR on 354 held-out pictures (--mode likelihood); per batch 17.7
dB at the discriminator's start and at the end. The VQ after 300 steps has 17.1 dB, and 41 of its 512 codes are in use at a
perplexity of 11 that still rises. With LPIPS the page has not been run. It is for trying out; the widths of models/vae.py's
presets and 100 times the steps are for use.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.lpips import where_installed
from diffusion_jax.runs.page import tiny

STEPS = 1500


def source(folder: str, split: str, local_split: str) -> dict:
    """TFDS, or the archive in `folder`."""
    if not folder:
        return dict(name="diffusion_jax.data.tfds:TFDS", dataset="oxford_flowers102", split=split)
    return dict(
        name="diffusion_jax.data.arrays:Arrays", path=f"{folder}/images128.zip", meta=("labels.json",), split=local_split,
        split_key="random_split",
    )


def get_config(arg: str = "") -> ConfigDict:
    """The page; `:vq`, `:<folder>` and `:vq,<folder>` see above, `:tiny` runs in seconds."""
    vq = arg == "vq" or arg.startswith("vq,")
    folder = "" if arg == "tiny" else arg[len("vq,"):] if vq else arg
    config = ConfigDict()
    config.seed = 0
    kind = dict(name="diffusion_jax.models.vae:VQ", codes=512) if vq else dict(name="diffusion_jax.models.vae:KL")
    config.model = dict(**kind, latent=3, width=16, mults=(1, 2, 2), depth=1, groups=8)
    config.task = dict(
        name="diffusion_jax.tasks.autoencoder:Autoencoder", shape=(64, 64, 3), weight=1.0 if vq else 1e-4,
        losses=dict(
            name="diffusion_jax.tasks.autoencoder_loss:Losses", perceptual_weight=0.2, disc_weight=0.2, disc_start=2 * STEPS // 3,
            ramp=200, lead=200, limit=10.0, disc=dict(name="diffusion_jax.models.gan:Discriminator", width=16, depth=2),
            perceptual=dict(name="diffusion_jax.models.lpips:LPIPS", width=4),
        ),
    )
    config.data = dict(
        train=source(folder, "train+test", "train"), test=source(folder, "validation", "val"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=64, flip=True),
    )
    config.batch = 8
    config.accumulate = 1
    config.steps = STEPS
    adam = dict(name="diffusion_jax.train.optim:optimizer", method="adam", lr=1e-3, warmup=50, b1=0.5, b2=0.9, clip=1.0)
    config.optim = dict(name="diffusion_jax.train.optim:partition", parts=dict(model=adam, disc={**adam, "lr": 2e-4}))
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=250, keep=2)
    config.log_every = 25
    config.evaluate = dict(num=0)
    config.validate = dict(every=100)
    if arg == "tiny":
        config.task.losses.perceptual = None
        config.task.losses.disc = dict(name="diffusion_jax.models.gan:Discriminator", width=8, depth=1)
        tiny(config, model=dict(width=8, mults=(1, 2), groups=4, channels=1), cond={})
        config.evaluate.num = 0
        return config
    return where_installed(config, weight=0.25)
