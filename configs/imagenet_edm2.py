"""ImageNet, EDM2 (arXiv 2312.02696): 64x64 on pixels as `:img64-s`, 512x512 on latents as `:img512-xs`, and the other sizes.

    python -m diffusion_jax.main --config configs/imagenet_edm2.py --workdir runs/edm2_img64_s
    python -m diffusion_jax.main --mode posthoc_ema --workdir runs/edm2_img64_s --std 0.05,0.10,0.15

Adam (0.9, 0.99), forced weight normalisation, 10 million images of warm-up, inverse square root decay after 35,000 (64x64) or
70,000 batches of 2,048, uncertainty in the loss, ln(sigma) ~ N(-0.8, 1.6) or N(-0.4, 1); no image is flipped; averages of
relative length 0.05 and 0.10, a snapshot of both every 8 Mi = 2^23 images. How many images each size sees stands beside it in
diffusion_jax/models/edm2.py, 1 Gi for img64-s and 2 Gi for img512-xs. Hardware: a TPU slice of 32 chips or more. The paper's FIDs
stand there too, 1.58 for img64-s, with an average of the best length; none has been reproduced here. The 512x512 pages encode
their images on the way with Stable Diffusion's autoencoder in runs/sd_vae:

    python -m diffusion_jax.main --mode import_weights --system vae --source vae-ft-mse.safetensors --workdir runs/sd_vae

The published script sums the loss over the H W C values of an image, here it is their mean. Adam does not see the factor but in
its eps, which is therefore 1e-8 / (H W C). The script computes in float16 at loss scale 1, which is H W C on a mean: at 64x64

    --config.model.dtype=float16 --config.loss_scale=12288                                  (16384 for latents, 64 x 64 x 4)

As there, what of a gradient is NaN or infinite under such a scale becomes 0.
"""
import math

from ml_collections import ConfigDict

from diffusion_jax.data.latents import Whitening
from diffusion_jax.models.edm2 import PRESETS, preset
from diffusion_jax.runs.page import tiny

BATCH = 2048
MI = 2**20


def get_config(arg: str = "img64-s") -> ConfigDict:
    """The page; `:tiny` runs in seconds."""
    name = f"edm2-{arg if arg not in ('', 'tiny') else 'img64-s'}"
    small = name.startswith("edm2-img64")
    published = PRESETS[name]
    mean, std = (-0.8, 1.6) if small else (-0.4, 1.0)
    dataset = "imagenet_resized/64x64" if small else "imagenet2012"
    config = ConfigDict()
    config.seed = 0
    config.model = dict(name="diffusion_jax.models.edm2:EDM2", **preset(name), dtype="bfloat16", remat="dots")
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.cond:OneHot", num_classes=1000, width=4 * config.model.width),
        process=dict(name="diffusion_jax.diffusion.process:EDM"),
        scale=dict(name="diffusion_jax.diffusion.scales:EDM", sigma_data=0.5),
        shape=(64, 64, config.model.channels),
        times=dict(name="diffusion_jax.diffusion.times:LogNormal", mean=mean, std=std),
        uncertainty=dict(name="diffusion_jax.models.edm2:Uncertainty"),
        forced=True,
    )
    config.data = dict(
        train=dict(name="diffusion_jax.data.tfds:TFDS", dataset=dataset, split="train"),
        test=dict(name="diffusion_jax.data.tfds:TFDS", dataset=dataset, split="validation"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=64 if small else 512),
    )
    if not small:
        config.first_stage = dict(folder="runs/sd_vae", **Whitening().options)
    config.batch = BATCH
    config.accumulate = 1
    config.loss_scale = 1.0
    config.steps = published["mi"] * MI // BATCH
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adam", lr=published["lr"], schedule="inverse_sqrt",
        warmup=10_000_000 / BATCH, ref=35_000 if small else 70_000, b1=0.9, b2=0.99, eps=1e-8 / math.prod(config.task.shape),
    )
    power = "diffusion_jax.train.ema:Power"
    config.ema = dict(ema=dict(name=power, std=0.10), short=dict(name=power, std=0.05))
    config.snapshots = dict(every=2**23 // BATCH, dtype="float16")
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=2**23 // BATCH, keep=2)
    config.log_every = 100
    config.sample = dict(num=64, every=2**23 // BATCH, sampler="edm", steps=32, times="karras", guidance=1.0)
    config.evaluate = dict(num=0, guidance=1.0, features="", every=0, samples=200)
    if arg == "tiny":
        size = dict(width=8, mults=(1, 2), depth=1, attend=(2,), head_channels=8, channels=1, dropout=0.0, dtype="float32")
        return tiny(config, model=size, cond=dict(width=16))
    return config
