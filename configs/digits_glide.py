"""Handwritten digits, 8x8: GLIDE (2112.10741) at its smallest, text to image, inpainting and an upsampler.

    python -m diffusion_jax.main --config configs/digits_glide.py --workdir runs/digits_glide
    python -m diffusion_jax.main --workdir runs/digits_glide --mode sample --prompt "a handwritten three" --guidance 3 --out 3.png
    python -m diffusion_jax.main --config configs/digits_glide.py:inpaint --workdir runs/digits_inpaint
    python -m diffusion_jax.main --config configs/digits_glide.py:upsample --workdir runs/digits_up

One caption in five is dropped. `:inpaint` fine-tunes runs/digits_glide (--config.init) with random masks; its new input channels
start at zero. `:upsample` makes 8x8 of 4x4. With configs/digits_clip.py, guidance by CLIP is --classifier runs/digits_clip
--classifier_scale 1, and the best of eight is --rerank runs/digits_clip --candidates 8.

Hardware: 2 CPU cores, half an hour beside much other work. Expect, of the checkpoint of step 1000 and in the eyes of digits_clip
(--metric clip), the own caption first of ten in 0.97 of 60 samples without guidance; CLIP score 57.4, and 59.4, 59.8, 60.3 with
--classifier_scale 1, 2 and 4; at guidance 3, 60.0, 60.7 and 61.1 for the best of 1, 2 and 4. `:inpaint` and `:upsample` have not
been run to their end: they promise no number yet.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny, variant

STEPS, CONTEXT, WIDTH = 1500, 24, 32


def get_config(arg: str = "") -> ConfigDict:
    """The page; `configs/digits_glide.py:tiny` runs in seconds."""
    variant(arg, "", "tiny", "inpaint", "upsample")
    glide, cond = "diffusion_jax.models.glide", "diffusion_jax.models.cond"
    text = dict(name=f"{glide}:Text", vocab=514, context=CONTEXT, width=64, layers=2, heads=4, out=4 * WIDTH)
    extra = dict(
        inpaint=[dict(name=f"{glide}:Inpaint")], upsample=[dict(name=f"{cond}:LowRes", factor=2, augment=0.2, width=4 * WIDTH)],
    ).get(arg, [])
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.unet:UNet", width=WIDTH, mults=(1, 2), depth=1, attend=(1, 2), heads=2, groups=8, channels=1,
        learn_sigma=True,
    )
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name=f"{cond}:Joint", parts=[text, *extra]),
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="linear" if arg == "upsample" else "squaredcos"),
        scale=dict(name="diffusion_jax.diffusion.scales:Eps"),
        shape=(8, 8, 1),
        variance="learned_range",
        objective="hybrid",
        drop=dict(tokens=0.2),
    )
    config.data = dict(
        train=dict(name="diffusion_jax.data.digits:Digits", split="train"),
        test=dict(name="diffusion_jax.data.digits:Digits", split="test"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=8, channels=1),
    )
    config.batch = 64
    config.accumulate = 1
    config.steps = STEPS // 3 if extra else STEPS
    if arg == "inpaint":
        config.init = "runs/digits_glide"
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-3, schedule="cosine", warmup=50, steps=config.steps,
        clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=500, keep=2)
    config.log_every = 50
    steps = "fast27" if arg == "upsample" else 27
    config.sample = dict(num=100, every=500, sampler="ddim", steps=steps, times="respace", clip=1.0, guidance=3.0)
    if arg == "upsample":
        config.sample.update(temperature=0.997, guidance=1.0)
    config.evaluate = dict(num=0, guidance=1.0)
    config.validate = dict(every=100)
    if arg == "tiny":
        config = tiny(config, model=dict(width=16, mults=(1,), attend=(1,)), cond={})
        config.task.cond.parts[0].update(width=16, layers=1, heads=2, out=64)
    config.data.decode.tokenizer = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", merges="", context=CONTEXT, pad_end=True)
    return config
