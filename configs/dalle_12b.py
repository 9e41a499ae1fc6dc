"""DALL-E as it was trained (2102.12092): 12 billion parameters over 256 text and 1,024 image tokens, codes of OpenAI's dVAE.

    python -m diffusion_jax.main --mode import_weights --system dvae --source <folder of the pickles> --workdir runs/openai_dvae
    python -m diffusion_jax.main --config configs/dalle_12b.py:<folder of captioned images> --workdir runs/dalle_12b
    python -m diffusion_jax.main --config configs/dalle_12b.py --mode plan --workdir runs/plan_dalle --topology v5p:8x8x8

Batch 1,024, AdamW with b2 0.96 and weight decay 0.045, clipping at 4, the rate 4.5e-4 after 5,000 steps of warm-up, then along a
cosine where the paper halved it by hand; an average of every update with 0.9996 for the paper's of every 25th with 0.99; all that
is stored is split over fsdp; bfloat16 in place of the paper's scaled float16. The merges of the paper's captions were not
published: these are CLIP's first 15,871. PowerSGD is --config.optim.powersgd=<rank>, over data, beside fsdp.

Hardware: a TPU pod slice of hundreds of chips, weeks; the page promises no number and has never been trained.
"""
from ml_collections import ConfigDict

from diffusion_jax.models.dalle import PAPER, PRESETS
from diffusion_jax.runs.page import tiny

LENGTH, MERGES = 256, 16384 - 512 - 1


def get_config(arg: str = "") -> ConfigDict:
    """The page; `:tiny` runs in seconds after `digits_dvae.py:tiny`, any other argument is the folder of the images."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.dalle:DALLE", **{**PAPER, **PRESETS["12B"]}, dtype="bfloat16", remat=True, scan=True,
    )
    config.task = dict(name="diffusion_jax.tasks.autoregressive:Autoregressive", text_weight=1.0, image_weight=7.0, drop=0.1)
    config.first_stage = "runs/openai_dvae"
    folder = "diffusion_jax.data.folder:Folder"
    config.data = dict(
        train=dict(name=folder, path=f"{arg}/train"), test=dict(name=folder, path=f"{arg}/test"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=256, crop="random"),
    )
    config.batch = 1024
    config.accumulate = 1
    config.steps = 430_000
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=4.5e-4, schedule="cosine", warmup=5_000, steps=430_000,
        clip=4.0, b2=0.96, eps=1e-8, weight_decay=4.5e-2, powersgd=0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.9996))
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    config.sharding = ((".*", "fsdp"),)
    config.checkpoint = dict(every=2_000, keep=2)
    config.log_every = 100
    config.evaluate = dict(num=0)
    words = dict(length=LENGTH, most=MERGES, dropout=0.1)
    if arg == "tiny":
        config.first_stage = "runs/digits_dvae"
        config = tiny(config, model=dict(
            text_codes=512 + 1 + 24, image_codes=16, text_length=24, grid=4, kernel=3, width=16, depth=2, heads=2,
        ), cond={})
        del config.task.shape
        config.evaluate.num = 0
        words = dict(length=24, merges="", dropout=0.1)
    config.data.decode.tokenizer = dict(name="diffusion_jax.data.caption_bpe:CaptionBPE", **words)
    return config
