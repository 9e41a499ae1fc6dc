"""Stable Diffusion 3 medium (2403.03206): two billion parameters, from texts to pictures of 1024x1024,
trained from the start.

    python -m diffusion_jax.main --mode import_weights --system sd3 --source stable-diffusion-3-medium/ --workdir runs/sd3
    python -m diffusion_jax.main --config configs/sd3_medium.py:data/images --workdir runs/sd3_256
    python -m diffusion_jax.main --config configs/sd3_medium.py:data/images --config.size=512 --workdir runs/sd3_512
    python -m diffusion_jax.main --config configs/sd3_medium.py:data/images --config.size=1024 --workdir runs/sd3_1024
    python -m diffusion_jax.main --mode plan --config configs/sd3_medium.py --workdir runs/plan --topology v5e:16x16

The first line brings the autoencoder and the three text encoders, which stay frozen. Three stages follow, the
second and third from the average of the one before. Half of a million steps of 4,096 pictures at 256x256,
AdamW at 1e-4 after 1,000 steps of warmup, as published; how long the other two took is not, and they are a
tenth of that each. The flow's shift grows with the side of a picture, to 3 at 1024. The paper drops each of
its three encoders at 0.464, a tenth of the pictures loses all; here the pooled text and its tokens are
dropped each by itself at 0.316, a tenth of the pictures loses both.

The data are a folder of images with captions. Hardware: a TPU pod or 64 GPUs; which layout fits, the last
line says, and docs/scale.md. This page has not been run and promises no number. The published weights are
imported, not trained: the first line.
"""
from ml_collections import ConfigDict

from diffusion_jax.build import ConfigError
from diffusion_jax.models import clip, mmdit, t5
from diffusion_jax.runs.page import tiny

STAGES = {256: (500_000, 4096, ""), 512: (50_000, 2048, "runs/sd3_256"), 1024: (50_000, 1024, "runs/sd3_512")}
"""Side of a picture -> updates, pictures a step, the run that it starts from."""
CONTEXT, T5_CONTEXT = 77, 256
PIECES = "stable-diffusion-3-medium/tokenizer_3/spiece.model"
DROP = 0.316
SHIFT, LARGEST, FACTOR = 3.0, 1024, 8


def towers(small: bool) -> dict:
    """The three text encoders."""
    tower, t5_encoder = "diffusion_jax.models.clip:TextTower", "diffusion_jax.models.t5:T5Encoder"
    if small:
        sizes = dict(name=tower, vocab=514, context=8, width=16, layers=2, heads=2, features=16)
        return dict(clip_l=sizes, clip_g=sizes, t5=None, width=32, context=8, t5_context=4)
    return dict(
        clip_l=clip.preset("ViT-L/14")["text"] | dict(dtype="bfloat16"),
        clip_g=clip.preset("ViT-bigG/14")["text"] | dict(dtype="bfloat16"),
        t5=dict(name=t5_encoder, **t5.preset("t5-v1.1-xxl"), scan=True, dtype="bfloat16"),
        context=CONTEXT, t5_context=T5_CONTEXT,
    )


def get_config(arg: str = "", size: int = 256) -> ConfigDict:
    """The page of a stage; the argument is the folder of images, `:tiny` runs in seconds."""
    if size not in STAGES:
        raise ConfigError(f"size {size}: this page has --config.size=256, 512 and 1024")
    folder = arg if arg not in ("", "tiny") else "data/images"
    steps, batch, init = STAGES[size]
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.mmdit:MMDiT", **mmdit.preset("sd3-medium"), dtype="bfloat16", scan=True,
        remat="full",
    )
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.sd3_text:SD3Text", **towers(small=arg == "tiny")),
        process=dict(name="diffusion_jax.diffusion.process:Flow", shift=max(SHIFT * size / LARGEST, 1.0)),
        scale=dict(name="diffusion_jax.diffusion.scales:Velocity"),
        times=dict(name="diffusion_jax.diffusion.times:LogitNormal"),
        shape=(size // FACTOR, size // FACTOR, 16),
        drop=dict(vec=DROP, seq=DROP),
    )
    source = "diffusion_jax.data.folder:Folder"
    config.data = dict(
        train=dict(name=source, path=f"{folder}/train"), test=dict(name=source, path=f"{folder}/test"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=size),
    )
    config.first_stage = "runs/sd3/first_stage"
    config.init = init or {"cond": "runs/sd3:cond"}
    config.batch = batch
    config.accumulate = 1
    config.steps = steps
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-4, schedule="constant", warmup=1000,
        weight_decay=0.01, clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.9999))
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    config.sharding = ((".*", "fsdp"),)
    config.gather = "use"
    config.checkpoint = dict(every=5000, keep=2)
    config.log_every = 100
    config.sample = dict(num=16, every=5000, sampler="euler", steps=28, times="flow_match", guidance=7.0)
    config.evaluate = dict(num=0, guidance=7.0)
    options = dict(length=2 * CONTEXT + T5_CONTEXT, pieces=PIECES, truncate=True)
    if arg == "tiny":
        del config.first_stage, config.init
        small = dict(width=32, depth=2, heads=4, channels=1, grid=16, dtype="float32")
        config = tiny(config, model=small, cond={})
        options = dict(length=16, clip=8, merges="", truncate=True)
    config.data.decode.tokenizer = dict(name="diffusion_jax.data.sd3_tokens:SD3Tokens", **options)
    return config
