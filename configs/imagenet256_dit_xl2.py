"""ImageNet 256x256, DiT-XL/2 on the latents of the Stable Diffusion autoencoder: the recipe of arXiv 2212.09748.

    python -m diffusion_jax.main --mode import_weights --system vae --source vae-ft-ema-560000.safetensors --workdir runs/sd_vae
    python -m diffusion_jax.main --config configs/imagenet256_dit_xl2.py --workdir runs/dit_xl2

AdamW at a constant 1e-4 without weight decay, batch 256, label dropout 0.1, EMA 0.9999, learned variance with the hybrid loss.
Hardware: a TPU pod slice, v5e-16 or larger. The paper reaches FID 2.27 after 7M steps (ADM's evaluator, 250 ancestral steps,
guidance 1.5); it has not been reproduced here. Images are encoded on the way; a data set of latents (mode `encode`, and
configs/flowers102_ldm.py for the sections that read it) saves that work.
"""
from ml_collections import ConfigDict

from diffusion_jax.models.dit import preset
from diffusion_jax.runs.page import tiny, variant


def get_config(arg: str = "") -> ConfigDict:
    """The page; `:tiny` runs in seconds."""
    variant(arg, "", "tiny")
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.dit:DiT", **preset("DiT-XL/2"), channels=4, learn_sigma=True, dtype="bfloat16", scan=True,
        remat="dots",
    )
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.cond:Label", num_classes=1000, width=1152),
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="linear"),
        scale=dict(name="diffusion_jax.diffusion.scales:Eps"),
        shape=(32, 32, 4),
        drop=dict(label=0.1),
        variance="learned_range",
        objective="hybrid",
    )
    config.data = dict(
        train=dict(name="diffusion_jax.data.tfds:TFDS", dataset="imagenet2012", split="train"),
        test=dict(name="diffusion_jax.data.tfds:TFDS", dataset="imagenet2012", split="validation"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=256, flip=True),
    )
    config.first_stage = "runs/sd_vae"
    config.batch = 256
    config.accumulate = 1
    config.steps = 7_000_000
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-4, schedule="constant", weight_decay=0.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.9999, warmup=False))
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    config.sharding = ((".*", "fsdp"),)
    config.checkpoint = dict(every=50_000, keep=2, keep_every=500_000)
    config.log_every = 100
    config.sample = dict(num=64, every=50_000, sampler="ancestral", steps=250, times="respace", guidance=4.0, channels=3)
    config.evaluate = dict(num=0, guidance=1.5, features="", every=0, samples=200)
    if arg == "tiny":
        del config.first_stage
        return tiny(config, model=dict(width=32, depth=2, heads=4, channels=1), cond=dict(width=32))
    return config
