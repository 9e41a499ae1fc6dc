"""Oxford-102 flowers at 32x32 with made-up captions: a CLIP (2103.00020) of colours and kinds.

    python -m diffusion_jax.main --config configs/flowers102_clip.py:../shared/data/flowers102 --workdir runs/flowers102_clip
    python -m diffusion_jax.main --workdir runs/flowers102_clip --mode evaluate --metric tsne
    python -m diffusion_jax.main --workdir runs/flowers102_clip --mode evaluate --metric zero_shot \\
        --template "a photo of a {}, a type of flower"

reads images128.zip, labels.json and captions_template.json ("a photo of a white passion flower, a type of flower") in the folder
that is the page's argument. `tsne` puts the features of the held-out images into a plane, coloured by class: tsne.png. What this
CLIP sees and reads is the condition of configs/flowers102_features.py. The tokenizer needs pip install open_clip_torch.

Hardware: 2 CPU cores, about 10 minutes alone. Expect, already at step 170 and on the 818 held-out images, the right one of 102
classes in 0.224 (0.500 among five; chance 0.010 and 0.049), R@1 0.227 from images to the 249 texts and 0.213 back (chance 0.004).
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny

SIZE, CONTEXT, MERGES = 32, 24, 3582


def source(folder: str, split: str) -> dict:
    """The flowers of a split, with captions."""
    return dict(
        name="diffusion_jax.data.arrays:Arrays", path=f"{folder}/images128.zip", meta=("labels.json", "captions_template.json"),
        caption="captions_template", split=split, split_key="random_split",
    )


def get_config(arg: str = "") -> ConfigDict:
    """The page; `:tiny` runs in seconds, any other argument is the folder of the flowers."""
    config = ConfigDict()
    config.seed = 0
    clip = "diffusion_jax.models.clip"
    config.model = dict(
        name=f"{clip}:CLIP",
        image=dict(name=f"{clip}:ViT", features=64, size=SIZE, patch=4, width=64, layers=3, heads=4),
        text=dict(name=f"{clip}:TextTower", features=64, vocab=512 + MERGES + 2, context=CONTEXT, width=64, layers=1, heads=4),
    )
    config.task = dict(name="diffusion_jax.tasks.clip:Contrastive", shape=(SIZE, SIZE, 3))
    config.data = dict(
        train=source(arg, "train"), test=source(arg, "val"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=SIZE, flip=True),
    )
    config.batch = 128
    config.accumulate = 1
    config.steps = 1000
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-3, schedule="constant", warmup=50, weight_decay=0.1,
        clip=1.0, no_decay=("bias", "scale", "logit_scale", "cls", "position"),
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.98))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=100, keep=2)
    config.log_every = 50
    config.evaluate = dict(num=818)
    config.validate = dict(every=100)
    merges = {"most": MERGES}
    if arg == "tiny":
        config = tiny(config, model=dict(mean=(0.5,), std=(0.5,)), cond={})
        config.model.image.update(features=16, width=16, layers=1, heads=2, size=8)
        config.model.text.update(features=16, width=16, layers=1, heads=2, vocab=514)
        merges = {"merges": ""}
    config.data.decode.tokenizer = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=CONTEXT, **merges)
    return config
