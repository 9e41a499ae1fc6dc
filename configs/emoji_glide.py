"""Emoji from their Unicode names: GLIDE (2112.10741) at 32x32, its inpainting fine-tune, and its upsampler to 64x64.

    python -m diffusion_jax.main --config configs/emoji_glide.py:../shared/data/emoji --workdir runs/emoji_glide
    python -m diffusion_jax.main --config configs/emoji_glide.py:../shared/data/emoji,inpaint --workdir runs/emoji_inpaint
    python -m diffusion_jax.main --config configs/emoji_glide.py:../shared/data/emoji,upsample --workdir runs/emoji_up
    python -m diffusion_jax.main --workdir runs/emoji_glide --mode sample --prompt "red apple" --upsampler runs/emoji_up

reads emoji64.npz and captions.json in the folder that is the page's argument. One caption in five is dropped; `,inpaint`
fine-tunes runs/emoji_glide (--config.init) with random masks; `,upsample` has a noised small image (augment). The tokenizer is
that of configs/emoji_clip.py, whose `,noised` CLIP guides by --classifier.

Hardware: one accelerator with 16 GB. This page has not been run to its end: it promises no number yet.
"""
from ml_collections import ConfigDict

from diffusion_jax.modes.config import tiny

CONTEXT, MERGES, WIDTH = 24, 3582, 96


def source(folder: str, split: str) -> dict:
    """The emoji of a split."""
    return dict(name="diffusion_jax.data.arrays:Arrays", path=f"{folder}/emoji64.npz", meta=("captions.json",), split=split)


def get_config(arg: str = "") -> ConfigDict:
    """The page; `:tiny` runs in seconds, any other argument is the folder of the emoji and perhaps `,inpaint` or `,upsample`."""
    folder, _, part = arg.partition(",")
    glide, cond = "diffusion_jax.models.glide", "diffusion_jax.models.cond"
    text = dict(name=f"{glide}:Text", vocab=512 + MERGES + 2, context=CONTEXT, width=256, layers=6, heads=4, out=4 * WIDTH)
    low_res = dict(name=f"{cond}:LowRes", factor=2, augment=0.2, width=4 * WIDTH)
    extra = dict(inpaint=[dict(name=f"{glide}:Inpaint")], upsample=[low_res]).get(part, [])
    size = 64 if part == "upsample" else 32
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.unet:UNet", width=WIDTH, mults=(1, 2, 3) if size == 32 else (1, 1, 2, 3), depth=2,
        attend=(2, 4) if size == 32 else (4, 8), head_channels=48, dropout=0.1, channels=3, learn_sigma=True, dtype="bfloat16",
    )
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name=f"{cond}:Joint", parts=[text, *extra]),
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="linear" if part == "upsample" else "squaredcos"),
        scale=dict(name="diffusion_jax.diffusion.scales:Eps"),
        shape=(size, size, 3),
        variance="learned_range",
        objective="hybrid",
        drop=dict(tokens=0.2),
    )
    config.data = dict(
        train=source(folder, "train"), test=source(folder, "val"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=size),
    )
    config.batch = 256
    config.accumulate = 1
    config.steps = 5000 if part == "inpaint" else 30_000
    if part == "inpaint":
        config.init = "runs/emoji_glide"
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=2e-4, schedule="cosine", warmup=500, steps=config.steps,
        clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.999))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=2500, keep=2)
    config.log_every = 100
    config.sample = dict(num=64, every=2500, sampler="ancestral", steps=100, times="respace", clip=1.0, guidance=3.0)
    if part == "upsample":
        config.sample.update(sampler="ddim", steps="fast27", temperature=0.997, guidance=1.0, augment=0.05)
    config.evaluate = dict(num=0, guidance=1.0)
    merges = {"most": MERGES}
    if arg == "tiny":
        small = dict(width=16, mults=(1,), depth=1, attend=(1,), head_channels=8, groups=8, channels=1)
        config = tiny(config, model=small, cond={})
        config.task.cond.parts[0].update(vocab=514, width=16, layers=1, heads=2, out=64)
        merges = {"merges": ""}
    config.data.decode.tokenizer = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=CONTEXT, pad_end=True, **merges)
    return config
