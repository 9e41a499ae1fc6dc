"""Stable Diffusion XL, its base (2307.01952): a UNet of 2.6 billion parameters, from texts to pictures of
1024x1024.

    python -m diffusion_jax.main --mode import_weights --system sdxl --source stable-diffusion-xl-base-1.0/ --workdir runs/sdxl
    python -m diffusion_jax.main --config configs/sdxl.py:data/images --workdir runs/sdxl_256
    python -m diffusion_jax.main --config configs/sdxl.py:data/images --config.size=512 --workdir runs/sdxl_512
    python -m diffusion_jax.main --config configs/sdxl.py:data/images --config.size=1024 --workdir runs/sdxl_1024
    python -m diffusion_jax.main --mode plan --config configs/sdxl.py --workdir runs/plan --topology v5e:16x16

The first line brings the autoencoder and both text encoders, which stay frozen. Three stages follow, the
second and third from the average of the one before: 600,000 steps of 2,048 pictures at 256x256 and 200,000 at
512x512, as published; how long the last one took, at many shapes of about 1024x1024, is not, and here it has
100,000 at that one shape and without its noise of a common offset. A picture counts as whole: the network is
told its own size, and no crop. Captions are dropped at 0.1.

The data are a folder of images with captions. Hardware: a TPU pod or 64 GPUs; which layout fits, the last
line says, and docs/scale.md. This page has not been run and promises no number. The published weights are
imported, not trained: the first line.
"""
from ml_collections import ConfigDict

from diffusion_jax.build import ConfigError
from diffusion_jax.models import clip
from diffusion_jax.runs.page import tiny

STAGES = {256: (600_000, ""), 512: (200_000, "runs/sdxl_256"), 1024: (100_000, "runs/sdxl_512")}
"""Side of a picture -> updates, the run that it starts from."""
CONTEXT, WIDTH, FACTOR = 77, 320, 8


def towers(small: bool) -> dict:
    """Both text encoders."""
    if small:
        sizes = dict(
            name="diffusion_jax.models.clip:TextTower", vocab=514, context=8, width=16, layers=2, heads=2,
            features=16,
        )
        return dict(clip_l=sizes, clip_g=sizes, width=4 * 32, waves=8, context=8)
    return dict(
        clip_l=clip.preset("ViT-L/14")["text"] | dict(dtype="bfloat16"),
        clip_g=clip.preset("ViT-bigG/14")["text"] | dict(dtype="bfloat16"),
        width=4 * WIDTH, context=CONTEXT,
    )


def get_config(arg: str = "", size: int = 256) -> ConfigDict:
    """The page of a stage; the argument is the folder of images, `:tiny` runs in seconds."""
    if size not in STAGES:
        raise ConfigError(f"size {size}: this page has --config.size=256, 512 and 1024")
    folder = arg if arg not in ("", "tiny") else "data/images"
    steps, init = STAGES[size]
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.unet:UNet", width=WIDTH, mults=(1, 2, 4), depth=2, attend=(2, 4),
        head_channels=64, transformer=(1, 2, 10), scale_shift=False, resample="conv", channels=4,
        learn_sigma=False, dtype="bfloat16", remat="full",
    )
    sizes = (size, size, 0, 0, size, size)
    ddpm = "diffusion_jax.diffusion.process:DDPM"
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.sdxl_text:XLText", sizes=sizes, **towers(small=arg == "tiny")),
        process=dict(name=ddpm, schedule="scaled_linear", start=0.00085, end=0.012),
        scale=dict(name="diffusion_jax.diffusion.scales:Eps"),
        shape=(size // FACTOR, size // FACTOR, 4),
        drop=dict(tokens=0.1),
    )
    source = "diffusion_jax.data.folder:Folder"
    config.data = dict(
        train=dict(name=source, path=f"{folder}/train"), test=dict(name=source, path=f"{folder}/test"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=size),
    )
    config.first_stage = "runs/sdxl/first_stage"
    towers_of = {f"cond/{name}": f"runs/sdxl:cond/{name}" for name in ("clip_l", "clip_g")}
    config.init = init or towers_of
    config.batch = 2048
    config.accumulate = 1
    config.steps = steps
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-4, schedule="constant",
        warmup=10_000, weight_decay=0.01,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.9999))
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    config.sharding = ((".*", "fsdp"),)
    config.checkpoint = dict(every=5000, keep=2)
    config.log_every = 100
    config.sample = dict(
        num=16, every=5000, sampler="euler", steps=50, times="leading,offset=1,last=0", guidance=5.0,
    )
    config.evaluate = dict(num=0, guidance=5.0)
    options = dict(length=2 * CONTEXT, truncate=True)
    if arg == "tiny":
        del config.first_stage, config.init
        small = dict(
            width=32, mults=(1, 2), depth=1, attend=(2,), head_channels=16, transformer=(1, 1), channels=1,
            dtype="float32",
        )
        config = tiny(config, model=small, cond=dict(sizes=(8, 8, 0, 0, 8, 8)))
        options = dict(length=16, clip=8, merges="", truncate=True)
    config.data.decode.tokenizer = dict(name="diffusion_jax.data.sd3_tokens:SD3Tokens", **options)
    return config
