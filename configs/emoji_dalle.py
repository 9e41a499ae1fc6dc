"""Emoji at 32x32 from their Unicode names: DALL-E (2102.12092), a transformer over captions and the codes of emoji_dvae.

    python -m diffusion_jax.main --config configs/emoji_dvae.py:../shared/data/emoji --workdir runs/emoji_dvae
    python -m diffusion_jax.main --config configs/emoji_dalle.py:../shared/data/emoji --workdir runs/emoji_dalle
    python -m diffusion_jax.main --workdir runs/emoji_dalle --mode sample --prompt "red heart" --out hearts.png
    python -m diffusion_jax.main --workdir runs/emoji_dalle --mode sample --num 16 --complete uppers.npz --out completed.png

Captions are byte-pair encoded with the first 3,582 merges of CLIP's (pip install open_clip_torch), and in training one merge in
ten is passed over, as in the paper.

Hardware: 2 CPU cores, 16 minutes on one of them. Expect, on the 354 held-out emoji, 3.15 bits of 8 for a token of the picture and
1.21 for one of the caption. Faces, heads in the skin tone asked for and flat shapes are there; a cat or a house is a patch.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny

STEPS, LENGTH, MERGES = 1500, 24, 3582


def source(folder: str, split: str) -> dict:
    """The emoji of a split."""
    return dict(name="diffusion_jax.data.arrays:Arrays", path=f"{folder}/emoji64.npz", meta=("captions.json",), split=split)


def get_config(arg: str = "") -> ConfigDict:
    """The page; `:tiny` runs in seconds after `emoji_dvae.py:tiny`, any other argument is the folder of the emoji."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.dalle:DALLE", text_codes=512 + MERGES + 1 + LENGTH, image_codes=256, text_length=LENGTH,
        grid=8, width=128, depth=4, heads=4, layout="dalle", kernel=5, start=0, dropout=0.1,
    )
    config.task = dict(name="diffusion_jax.tasks.autoregressive:Autoregressive", text_weight=1.0, image_weight=7.0, drop=0.1)
    config.first_stage = "runs/emoji_dvae"
    config.data = dict(
        train=source(arg, "train"), test=source(arg, "val"), decode=dict(name="diffusion_jax.data.image:Decode", size=32),
    )
    config.batch = 32
    config.accumulate = 1
    config.steps = STEPS
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-3, schedule="cosine", warmup=50, steps=STEPS, clip=4.0,
        b2=0.96, weight_decay=4.5e-2, powersgd=0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=200, keep=2)
    config.log_every = 20
    config.evaluate = dict(num=0)
    config.validate = dict(every=100)
    words = dict(length=LENGTH, most=MERGES, dropout=0.1)
    if arg == "tiny":
        small = dict(text_codes=512 + 1 + LENGTH, image_codes=16, grid=4, width=16, depth=2, heads=2)
        config = tiny(config, model=small, cond={})
        del config.task.shape
        config.evaluate.num = 0
        words = dict(length=LENGTH, merges="", dropout=0.1)
    config.data.decode.tokenizer = dict(name="diffusion_jax.data.caption_bpe:CaptionBPE", **words)
    return config
