"""Emoji at 32x32 with their Unicode names: a CLIP (2103.00020) trained from nothing on 2,885 pairs.

    python -m diffusion_jax.main --config configs/emoji_clip.py:../shared/data/emoji --workdir runs/emoji_clip
    python -m diffusion_jax.main --workdir runs/emoji_clip --mode evaluate --metric retrieval

reads emoji64.npz and captions.json in the folder that is the page's argument (Noto Emoji, Apache 2.0). The tokenizer has
the first 3,582 merges of CLIP's: pip install open_clip_torch. What guides configs/emoji_glide.py (2112.10741) sees noised
images of 16x16:

    python -m diffusion_jax.main --config configs/emoji_clip.py:../shared/data/emoji,noised --workdir runs/emoji_clip_noised

and what judges 64x64 learns from all pictures, those that are held out from generators too, and from another seed:

    python -m diffusion_jax.main --config configs/emoji_clip.py:../shared/data/emoji,judge --workdir runs/emoji_judge

Hardware: 2 CPU cores, 20 minutes alone. Expect, on 354 held-out pairs, R@1 0.43, R@5 0.69 and R@10 0.73 from images to texts,
0.45, 0.69 and 0.74 back (step 212: R@1 0.30 and 0.34); of `,noised`, R@1 0.28 and 0.29. Chance is 0.003, 0.014 and 0.028.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny, variant

CONTEXT, MERGES = 24, 3582


def source(folder: str, split: str | None) -> dict:
    """The emoji of a split; None is all of them."""
    arrays = "diffusion_jax.data.arrays:Arrays"
    return dict(name=arrays, path=f"{folder}/emoji64.npz", meta=("captions.json",), split=split)


def get_config(arg: str = "") -> ConfigDict:
    """The page; `:tiny` runs in seconds, any other argument is the folder of the emoji and perhaps `,noised` or `,judge`."""
    folder, _, part = arg.partition(",")
    variant(part, "", "noised", "judge")
    noised, judge = part == "noised", part == "judge"
    size = {"noised": 16, "judge": 64}.get(part, 32)
    config = ConfigDict()
    config.seed = 1 if judge else 0
    clip = "diffusion_jax.models.clip"
    config.model = dict(
        name=f"{clip}:CLIP",
        image=dict(
            name=f"{clip}:ViT", features=128, size=size, patch=8 if judge else 4, width=96, layers=3, heads=4,
            steps=1000 if noised else 0,
        ),
        text=dict(
            name=f"{clip}:TextTower", features=128, vocab=512 + MERGES + 2, context=CONTEXT, width=96, layers=2, heads=4,
        ),
    )
    config.task = dict(name="diffusion_jax.tasks.clip:Contrastive", shape=(size, size, 3))
    if noised:
        config.task.process = dict(name="diffusion_jax.diffusion.process:DDPM", schedule="squaredcos")
    config.data = dict(
        train=source(folder, None if judge else "train"), test=source(folder, "val"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=size, crop="random" if not noised else "center"),
    )
    config.batch = 128
    config.accumulate = 1
    config.steps = 600 if noised else 1200
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-3, schedule="cosine", warmup=100, steps=config.steps,
        weight_decay=0.2, clip=1.0, no_decay=("bias", "scale", "logit_scale", "cls", "position"),
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=400, keep=3)
    config.log_every = 50
    config.evaluate = dict(num=354)
    config.validate = dict(every=100)
    merges = {"most": MERGES}
    if arg == "tiny":
        config = tiny(config, model=dict(mean=(0.5,), std=(0.5,)), cond={})
        config.model.image.update(width=16, layers=1, heads=2, size=8)
        config.model.text.update(width=16, layers=1, heads=2, vocab=514)
        merges = {"merges": ""}
    config.data.decode.tokenizer = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=CONTEXT, **merges)
    return config
