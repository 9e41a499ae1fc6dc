"""Oxford-102 flowers at 16x16 under the embeddings that a CLIP has of them: trained without a text, sampled with texts.

    python -m diffusion_jax.main --config configs/flowers102_features.py:../shared/data/flowers102 --workdir runs/flowers_features
    python -m diffusion_jax.main --workdir runs/flowers_features --mode sample --prior text \\
        --prompt "a photo of a red rose, a type of flower" --prompt "a photo of a yellow sunflower, a type of flower"

reads images128.zip and labels.json in the folder that is the page's argument. The CLIP is that of configs/flowers102_clip.py, in
runs/flowers102_clip (--config.first_stage), which sees the flowers enlarged to 32x32; it becomes part of the run. In training the
condition is its embedding of the image itself, with noise (models/clip_cond.py), dropped for one image in ten; in sampling that
of the prompt. Without a prompt, mode `sample` shows variations of held-out images.

Hardware: 2 CPU cores, half an hour alone. Expect, already at step 163 and at guidance 3, red, yellow, purple and white flowers on
dark ground of a red rose, a yellow sunflower, a purple petunia and a white daisy: six of six samples each. Shapes come later.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny

SIZE, CONTEXT, MERGES, FEATURES, WIDTH = 16, 24, 3582, 64, 32


def source(folder: str, split: str) -> dict:
    """The flowers of a split; the network reads nothing of their captions."""
    return dict(
        name="diffusion_jax.data.arrays:Arrays", path=f"{folder}/images128.zip", meta=("labels.json", "captions_template.json"),
        caption="captions_template", split=split, split_key="random_split",
    )


def get_config(arg: str = "") -> ConfigDict:
    """The page; `:tiny` runs in seconds, any other argument is the folder of the flowers."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.unet:UNet", width=WIDTH, mults=(1, 2), depth=1, attend=(2,), heads=2, groups=8, channels=3,
        learn_sigma=False,
    )
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.clip_cond:Features", features=FEATURES, width=4 * WIDTH),
        process=dict(name="diffusion_jax.diffusion.process:Flow"),
        scale=dict(name="diffusion_jax.diffusion.scales:Velocity"),
        shape=(SIZE, SIZE, 3),
        times=dict(name="diffusion_jax.diffusion.times:LogitNormal"),
        drop=dict(clip_image=0.1),
    )
    config.first_stage = "runs/flowers102_clip"
    config.data = dict(
        train=source(arg, "train"), test=source(arg, "val"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=SIZE, flip=True),
    )
    config.batch = 32
    config.accumulate = 1
    config.steps = 1500
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-3, schedule="constant", warmup=50, clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=100, keep=2)
    config.log_every = 50
    config.sample = dict(num=36, every=500, sampler="heun", steps=15, times="uniform", guidance=2.0)
    config.evaluate = dict(num=0, guidance=1.0)
    config.validate = dict(every=100)
    merges = {"most": MERGES}
    if arg == "tiny":
        config.first_stage = "flowers102_clip"
        config = tiny(config, model=dict(width=16, mults=(1,), attend=(1,), channels=1), cond=dict(features=16, width=64))
        merges = {"merges": ""}
    config.data.decode.tokenizer = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=CONTEXT, **merges)
    return config
