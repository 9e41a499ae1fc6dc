"""Emoji from their Unicode names: latent diffusion (2112.10752) in the latents of configs/emoji_vae.py.

    python -m diffusion_jax.main --mode encode --workdir runs/emoji_vae --out runs/emoji_latents
    python -m diffusion_jax.main --config configs/emoji_ldm.py:runs/emoji_latents --workdir runs/emoji_ldm
    python -m diffusion_jax.main --workdir runs/emoji_ldm --mode sample --prompt "red heart" --guidance 3

The argument is the folder of latents; the autoencoder lies in it and becomes part of the run. The text tower is CLIP's, learns
with the network, and reads the tokens of configs/emoji_clip.py, which judges what comes out:

    python -m diffusion_jax.main --workdir runs/emoji_ldm --mode evaluate --metric clip --features runs/emoji_clip --num 200

At 64x64, in the latents of a published tiny autoencoder (runs/tae of configs/flowers102_tae.py), with straight paths and a DiT,
an hour on two cores. Expect that of 160 held-out captions 0.64, and of 100 that were trained on 0.89, are the first of ten in the
eyes of configs/emoji_clip.py:...,judge at guidance 2 (--metric clip --steps 20):

    python -m diffusion_jax.main --mode encode --workdir runs/tae --config configs/emoji_vae.py:../shared/data/emoji \\
        --config.data.decode.size=64 --out runs/emoji_tae
    python -m diffusion_jax.main --config configs/emoji_ldm.py:runs/emoji_tae,tae --workdir runs/emoji_ldm64

Hardware: 2 CPU cores, an hour. Expect from the checkpoint of step 800 that of 200 held-out captions 0.47, 0.59 and 0.56 are the
first of ten in the eyes of that CLIP (chance is 0.1) at guidance 1, 3 and 6 with 15 steps, and CLIP scores of 47, 53 and 52.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny, variant

CONTEXT, MERGES, WIDTH, WIDE = 24, 3582, 96, 256


def in_tae(config: ConfigDict) -> None:
    """What is other in the latents of the tiny autoencoder."""
    config.model = dict(
        name="diffusion_jax.models.dit:DiT", width=WIDE, depth=8, heads=4, patch=2, block="cross_attention", channels=32,
        learn_sigma=False, scan=True, remat="dots",
    )
    config.task.process = dict(name="diffusion_jax.diffusion.process:Flow")
    config.task.scale = dict(name="diffusion_jax.diffusion.scales:Velocity")
    config.task.times = dict(name="diffusion_jax.diffusion.times:LogitNormal")
    config.task.shape = (8, 8, 32)
    config.task.cond.tower.width = WIDE
    config.steps = 4000
    config.optim.steps = 4000
    config.ema.ema.decay = 0.999
    config.sample.update(sampler="dpmpp_2m")


def get_config(arg: str = "") -> ConfigDict:
    """The page; the argument is the folder of latents and perhaps `,tae`, `:tiny` trains on pixels and runs in seconds."""
    folder, _, part = arg.partition(",")
    variant(part, "", "tae")
    folder = folder if folder not in ("", "tiny") else "runs/emoji_latents"
    tower = dict(name="diffusion_jax.models.clip:TextTower", features=None, vocab=512 + MERGES + 2, context=CONTEXT, width=WIDTH,
                 layers=2, heads=4)
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.unet:UNet", width=64, mults=(1, 2), depth=1, attend=(1, 2), heads=4, groups=8, transformer=1,
        scale_shift=False, resample="conv", channels=4, learn_sigma=False,
    )
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.text_cond:TowerText", tower=tower, empty=(512 + MERGES, 513 + MERGES, 0),
                  context=CONTEXT, frozen=False),
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="scaled_linear", start=0.00085, end=0.012),
        scale=dict(name="diffusion_jax.diffusion.scales:V"),
        shape=(8, 8, 4),
        drop=dict(tokens=0.1),
    )
    latents = "diffusion_jax.data.latents:Latents"
    config.data = dict(
        train=dict(name=latents, path=folder, split="train"), test=dict(name=latents, path=folder, split="test"),
        decode=dict(name="diffusion_jax.data.latents:Draw", path=folder),
    )
    config.first_stage = f"{folder}/first_stage"
    config.batch = 64
    config.accumulate = 1
    config.steps = 2000
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-3, schedule="cosine", warmup=100, steps=2000, clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=200, keep=2)
    config.log_every = 50
    config.sample = dict(num=32, every=500, sampler="ddim", steps=25, times="uniform", guidance=3.0)
    config.evaluate = dict(num=0, guidance=1.0)
    config.validate = dict(every=100)
    if part == "tae":
        in_tae(config)
    merges = {"most": MERGES}
    if arg == "tiny":
        del config.first_stage
        config = tiny(config, model=dict(width=16, mults=(1,), attend=(1,), channels=1), cond={})
        config.task.cond.tower.update(vocab=514, width=16, layers=1, heads=2)
        config.task.cond.empty = (512, 513, 0)
        merges = {"merges": ""}
    config.data.decode.tokenizer = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=CONTEXT, **merges)
    return config
