"""Stable Diffusion 3 (2403.03206) at its smallest: an MMDiT on straight paths, from a caption to a picture.

    python -m diffusion_jax.main --config configs/sd3_tiny.py --workdir runs/sd3_tiny
    python -m diffusion_jax.main --workdir runs/sd3_tiny --mode sample --prompt "a handwritten three" --out 3.png

trains on the 8x8 digits. Text and image are two streams of tokens that meet in attention; times are
logit-normal; the flow is shifted by the square root of how many times as many pixels there are as at 8x8; the
pooled text and its tokens are dropped each by itself, at 0.3, which leaves a tenth of the pictures without
any text. Emoji at 16x16, with another tokenizer, and flowers in the latents of runs/flowers_tae_text
(configs/flowers102_tae.py says how they are made):

    python -m diffusion_jax.main --config configs/sd3_tiny.py:../shared/data/emoji --workdir runs/sd3_emoji
    python -m diffusion_jax.main --config configs/sd3_tiny.py:runs/flowers_tae_text,latents --workdir runs/sd3_flowers

Hardware: 2 CPU cores, five minutes of processor time for the digits. Expect a loss on held-out digits of 0.363
and, of 50 pictures of each of the ten captions, that 0.974 are the digit that is named at guidance 1 and all of
them at guidance 2, in the eyes of the support vector machine of metrics/pixels.py. The emoji and the flowers
have not been run to their end: that page promises no number yet.
"""
from ml_collections import ConfigDict

from diffusion_jax.data.digits import WORDS
from diffusion_jax.runs.page import tiny, variant

TEXT = ("a", "handwritten", *WORDS)
LENGTH, CONTEXT, MERGES = 3, 24, 3582
DROP = 0.3
BASE = 8
"""Side of a picture whose flow is not shifted."""


def get_config(arg: str = "") -> ConfigDict:
    """The page; without an argument of the digits, `:tiny` runs in seconds, a folder is that of the emoji, or
    with `,latents` one of latents with captions."""
    folder, _, part = arg.partition(",")
    variant(part, "", "latents")
    kind = "digits" if folder in ("", "tiny") else part or "emoji"
    side, channels = {"digits": (8, 1), "emoji": (16, 3), "latents": (8, 32)}[kind]
    vocab = len(TEXT) + 2 if kind == "digits" else 512 + MERGES + 2
    width = 96 if kind == "digits" else 192
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.mmdit:MMDiT", patch=2, width=width, depth=4 if kind == "digits" else 8,
        heads=4, channels=channels, qk_norm="rms", grid=16, scan=True, remat="dots",
    )
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(
            name="diffusion_jax.models.glide:Text", vocab=vocab, layers=2, heads=4, out=width,
            context=LENGTH if kind == "digits" else CONTEXT, width=64 if kind == "digits" else 128,
        ),
        process=dict(name="diffusion_jax.diffusion.process:Flow", shift=side / BASE),
        scale=dict(name="diffusion_jax.diffusion.scales:Velocity"),
        times=dict(name="diffusion_jax.diffusion.times:LogitNormal"),
        shape=(side, side, channels),
        drop=dict(vec=DROP, seq=DROP),
    )
    config.data = data_of(kind, folder)
    config.batch = 128 if kind == "digits" else 64
    config.accumulate = 1
    config.steps = dict(digits=1000, emoji=3000, latents=6000)[kind]
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=2e-3 if kind == "digits" else 1e-3,
        schedule="cosine", warmup=100, steps=config.steps, clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.995))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=500, keep=2)
    config.log_every = 50
    config.sample = dict(num=100, every=500, sampler="dpmpp_2m", steps=20, times="uniform", guidance=2.0)
    config.evaluate = dict(num=0, guidance=1.0)
    config.validate = dict(every=100)
    if kind == "latents":
        config.first_stage = f"{folder}/first_stage"
    if arg == "tiny":
        config = tiny(config, model=dict(width=32, depth=2), cond=dict(width=32, layers=1, out=32))
    config.data.decode.tokenizer = tokenizer_of(kind)
    return config


def data_of(kind: str, folder: str) -> dict:
    """The data of a kind, without their tokenizer."""
    decode = "diffusion_jax.data.image:Decode"
    if kind == "digits":
        digits = "diffusion_jax.data.digits:Digits"
        return dict(
            train=dict(name=digits, split="train"), test=dict(name=digits, split="test"),
            decode=dict(name=decode, size=8, channels=1),
        )
    if kind == "latents":
        latents = "diffusion_jax.data.latents:Latents"
        return dict(
            train=dict(name=latents, path=folder, split="train"),
            test=dict(name=latents, path=folder, split="test"),
            decode=dict(name="diffusion_jax.data.latents:Draw", path=folder),
        )
    arrays = "diffusion_jax.data.arrays:Arrays"
    emoji = dict(name=arrays, path=f"{folder}/emoji64.npz", meta=("captions.json",))
    return dict(
        train=emoji | dict(split="train"), test=emoji | dict(split="val"), decode=dict(name=decode, size=16),
    )


def tokenizer_of(kind: str) -> dict:
    """Words of the digits' captions; CLIP's tokenizer for others."""
    if kind == "digits":
        return dict(name="diffusion_jax.data.words:Words", words=TEXT, length=LENGTH)
    return dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=CONTEXT, most=MERGES, pad_end=True)
