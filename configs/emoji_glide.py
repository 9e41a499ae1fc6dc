"""Emoji from their Unicode names: GLIDE (2112.10741) at 16x16, its inpainting fine-tune, its upsampler.

    python -m diffusion_jax.main --config configs/emoji_glide.py:../shared/data/emoji --workdir runs/emoji_glide
    python -m diffusion_jax.main --config configs/emoji_glide.py:../shared/data/emoji,inpaint --workdir runs/emoji_inpaint
    python -m diffusion_jax.main --config configs/emoji_glide.py:../shared/data/emoji,upsample --workdir runs/emoji_up
    python -m diffusion_jax.main --workdir runs/emoji_glide --mode sample --prompt "red heart" --upsampler runs/emoji_up

reads emoji64.npz and captions.json in the folder that is the page's argument. One caption in five is dropped; `,inpaint`
fine-tunes runs/emoji_glide (--config.init) with random masks; `,upsample` makes 32x32 of a noised 16x16 (augment) in 27 steps,
and `,upsample64` 64x64, four times as large, as GLIDE's own.
The networks predict v, not eps with a learned variance as GLIDE's do: flat colours come many steps earlier. The tokenizer is that
of configs/emoji_clip.py, whose `,noised` CLIP guides: --classifier runs/emoji_clip_noised.

    python -m diffusion_jax.main --workdir runs/emoji_glide --mode evaluate --metric clip --features runs/emoji_clip \\
        --upsampler runs/emoji_up --guidance 3 --classifier runs/emoji_clip_noised --classifier_scale 2

Hardware: 2 CPU cores; on one of them the base takes 46 minutes, `,upsample64` 20. Expect a loss on held-out emoji of 0.142 and
0.066. In the eyes of the judge of configs/emoji_clip.py, 0.82 of 50 captions that were trained on are the first of ten at
64x64 and 0.36 of held-out ones, and to the eye faces and people are what they should be (docs/gallery.md). After 1,000 steps,
of 100 held-out captions 0.54, 0.65 and 0.72 are the first of ten in the eyes of runs/emoji_clip (chance is 0.1), and CLIP
scores of 45, 53 and 56, without guidance, with --guidance 3, and with both (--steps 15); docs/experiments.md has all scales.
Inpainting (--op inpaint) changes nothing outside its rectangles.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny, variant

CONTEXT, MERGES, WIDTH = 24, 3582, 48


def source(folder: str, split: str) -> dict:
    """The emoji of a split."""
    return dict(name="diffusion_jax.data.arrays:Arrays", path=f"{folder}/emoji64.npz", meta=("captions.json",), split=split)


def get_config(arg: str = "") -> ConfigDict:
    """The page; `:tiny` runs in seconds, any other argument is the folder of the emoji and perhaps a part behind a comma."""
    folder, _, part = arg.partition(",")
    variant(part, "", "inpaint", "upsample", "upsample64")
    size = {"upsample": 32, "upsample64": 64}.get(part, 16)
    enlarges = size > 16
    glide, cond = "diffusion_jax.models.glide", "diffusion_jax.models.cond"
    text = dict(name=f"{glide}:Text", vocab=512 + MERGES + 2, context=CONTEXT, width=96, layers=2, heads=4, out=4 * WIDTH)
    low_res = dict(name=f"{cond}:LowRes", factor=size // 16, augment=0.2, width=4 * WIDTH)
    extra = [low_res] if enlarges else [dict(name=f"{glide}:Inpaint")] if part == "inpaint" else []
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.unet:UNet", width=WIDTH, mults={16: (1, 2, 2), 32: (0.5, 1, 2), 64: (0.5, 0.5, 1, 2)}[size],
        depth=1, attend={16: (2, 4), 32: (4,), 64: (8,)}[size], heads=4, groups=8, channels=3, learn_sigma=False,
    )
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name=f"{cond}:Joint", parts=[text, *extra]),
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="linear" if enlarges else "squaredcos"),
        scale=dict(name="diffusion_jax.diffusion.scales:V"),
        shape=(size, size, 3),
        drop=dict(tokens=0.2),
    )
    config.data = dict(
        train=source(folder, "train"), test=source(folder, "val"), decode=dict(name="diffusion_jax.data.image:Decode", size=size),
    )
    config.batch = 16 if size == 64 else 64
    config.accumulate = 1
    config.steps = dict(inpaint=200, upsample=600, upsample64=800).get(part, 1600)
    if part == "inpaint":
        config.init = "runs/emoji_glide"
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-3, schedule="cosine", warmup=50,
        steps=config.steps, clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=250, keep=2)
    config.log_every = 50
    steps = "fast27" if enlarges else 27
    config.sample = dict(num=36, every=400, sampler="ddim", steps=steps, times="respace", clip=1.0, guidance=3.0)
    if enlarges:
        config.sample.update(temperature=0.997, guidance=1.0, augment=0.05)
    config.evaluate = dict(num=0, guidance=1.0)
    config.validate = dict(every=100)
    merges = {"most": MERGES}
    if arg == "tiny":
        config = tiny(config, model=dict(width=16, mults=(1,), attend=(1,), channels=1), cond={})
        config.task.cond.parts[0].update(vocab=514, width=16, layers=1, heads=2, out=64)
        merges = {"merges": ""}
    config.data.decode.tokenizer = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=CONTEXT, pad_end=True, **merges)
    return config
