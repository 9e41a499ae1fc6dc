"""Handwritten digits, 8x8: DALL-E (2102.12092), a transformer over captions ("a handwritten three") and the codes of digits_dvae.

    python -m diffusion_jax.main --config configs/digits_dvae.py --workdir runs/digits_dvae
    python -m diffusion_jax.main --config configs/digits_dalle.py --workdir runs/digits_dalle
    python -m diffusion_jax.main --workdir runs/digits_dalle --mode sample --prompt "a handwritten three" --out three.png
    python -m diffusion_jax.main --workdir runs/digits_dalle --mode likelihood

`--config.first_stage=<folder>` names another first stage. Row, column and a last convolutional attention as in the paper; text
counts 1 and images 7; one caption in ten is dropped, so that `--guidance` works.

Hardware: 2 CPU cores, 3 minutes (145 s of CPU time). Expect, on the 297 held-out digits, 1.16 bits per token of text (of which
log2(10) / 3 = 1.11 is all that there is), 2.94 per image token, 3.39 without the caption; 90 % of samples show the digit that the
prompt names.
"""
from ml_collections import ConfigDict

from diffusion_jax.data.digits import WORDS
from diffusion_jax.runs.page import tiny, variant

STEPS = 1200
TEXT = ("a", "handwritten", *WORDS)
LENGTH = 3


def get_config(arg: str = "") -> ConfigDict:
    """The page; `configs/digits_dalle.py:tiny` runs in seconds, after `digits_dvae.py:tiny`."""
    variant(arg, "", "tiny")
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.dalle:DALLE", text_codes=len(TEXT) + 1 + LENGTH, image_codes=64, text_length=LENGTH, grid=4,
        width=64, depth=4, heads=4, layout="dalle", kernel=3, start=0, dropout=0.1,
    )
    config.task = dict(name="diffusion_jax.tasks.autoregressive:Autoregressive", text_weight=1.0, image_weight=7.0, drop=0.1)
    config.first_stage = "runs/digits_dvae"
    config.data = dict(
        train=dict(name="diffusion_jax.data.digits:Digits", split="train"),
        test=dict(name="diffusion_jax.data.digits:Digits", split="test"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=8, channels=1),
    )
    config.batch = 64
    config.accumulate = 1
    config.steps = STEPS
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-3, schedule="cosine", warmup=100, steps=STEPS, clip=4.0,
        b2=0.96, weight_decay=4.5e-2, powersgd=0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=500, keep=2)
    config.log_every = 100
    config.evaluate = dict(num=0)
    config.validate = dict(every=100)
    if arg == "tiny":
        config = tiny(config, model=dict(image_codes=16, width=16, depth=2, heads=2), cond={})
        del config.task.shape
        config.evaluate.num = 0
    config.data.decode.tokenizer = dict(name="diffusion_jax.data.words:Words", words=TEXT, length=LENGTH)
    return config
