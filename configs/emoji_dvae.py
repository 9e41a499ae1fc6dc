"""Emoji at 32x32: the discrete VAE of DALL-E (2102.12092, appendix A), 8x8 tokens of 128 codes, for emoji_dalle.py.

    python -m diffusion_jax.main --config configs/emoji_dvae.py:../shared/data/emoji --workdir runs/emoji_dvae
    python -m diffusion_jax.main --workdir runs/emoji_dvae --mode likelihood

reads emoji64.npz and captions.json in the folder that is the page's argument. As in digits_dvae.py the density of pixels gives
way to L2 and the rising beta to `balance`: many pixels are exactly white, where a density is worth more than any shape, and with
the paper's loss all but a few codes die (docs/experiments.md). Where `pip install 'diffusion_jax[lpips]'` has its weights, LPIPS
is in the loss too, at a weight of 0.2.

Hardware: 2 CPU cores, 15 minutes on one of them. Expect, with LPIPS, on the 354 held-out emoji mean squared error 0.073 in
[-1, 1], perplexity 161 of 256 codes, LPIPS 0.31 (vgg) and 0.09 (alex).
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.lpips import where_installed
from diffusion_jax.runs.page import tiny

STEPS = 900


def source(folder: str, split: str) -> dict:
    """The emoji of a split."""
    return dict(name="diffusion_jax.data.arrays:Arrays", path=f"{folder}/emoji64.npz", meta=("captions.json",), split=split)


def get_config(arg: str = "") -> ConfigDict:
    """The page; `:tiny` runs in seconds, any other argument is the folder of the emoji."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.dvae:DVAE", codes=256, width=16, mults=(1, 2, 4), depth=1, init_width=64, channels=3,
    )
    anneal = "diffusion_jax.tasks.dvae:Anneal"
    config.task = dict(
        name="diffusion_jax.tasks.dvae:DiscreteVAE", shape=(32, 32, 3), reconstruction="l2", balance=0.03,
        temperature=dict(name=anneal, start=1.0, end=1 / 16, steps=int(0.7 * STEPS)),
        beta=dict(name=anneal, start=0.005, end=0.005, steps=1),
    )
    config.data = dict(
        train=source(arg, "train"), test=source(arg, "val"), decode=dict(name="diffusion_jax.data.image:Decode", size=32),
    )
    config.batch = 32
    config.accumulate = 1
    config.steps = STEPS
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=3e-3, schedule="cosine", warmup=50, steps=STEPS, clip=1.0,
        weight_decay=1e-4,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=100, keep=2)
    config.log_every = 20
    config.evaluate = dict(num=0)
    config.validate = dict(every=100)
    if arg == "tiny":
        config = tiny(config, model=dict(codes=16, width=8, mults=(1, 2), init_width=8, channels=1), cond={})
        config.evaluate.num = 0
        return config
    return where_installed(config, weight=0.2)
