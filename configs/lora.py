"""A LoRA (2106.09685) of a run, or of imported weights: a few factors beside weights that stay, for a class, a subject, a style.

    python -m diffusion_jax.main --config configs/lora.py:runs/sd --config.pictures=photos/ --workdir runs/mine
    python -m diffusion_jax.main --workdir runs/mine --mode sample --prompt "a photo of sks"
    python -m diffusion_jax.main --workdir runs/sd --mode sample --prompt "a photo of sks" --lora runs/mine=0.7

The argument is the folder of the base, whose network, task, size, tokenizer and way of sampling these are. `pictures` is a folder
as configs/folder.py reads it, with captions for a base that reads texts, class folders for one of classes; without it the data
are the base's own. Which kernels are changed `--config.lora.layers` says, a regular expression of their paths; by default the
projections of attention of the network. The file runs/mine/lora.safetensors is for other programs too (docs/fine_tuning.md).

Hardware: what samples the base trains this, at a batch that fits. The page promises no number.
"""
from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax.build import ConfigError
from diffusion_jax.runs import pages
from diffusion_jax.runs.page import tiny
from diffusion_jax.train.checkpoint import config_of
from diffusion_jax.train.state import plain, task_of

LAYERS = r"^model/.*\b(q|k|v|out|qkv|kv|proj)/kernel$"


def data_of(of_base: dict, pictures: str | None) -> dict:
    """Pictures of one's own, read as the base reads them, or the base's. Those of a base that was trained on stored latents are
    encoded on the way."""
    if pictures is None:
        return of_base["data"]
    source = dict(name="diffusion_jax.data.folder:Folder", path=pictures)
    decode = of_base["data"]["decode"]
    if decode["name"] == "diffusion_jax.data.latents:Draw":
        height, _, channels = task_of(of_base).picture_shape
        pixels = dict(name="diffusion_jax.data.image:Decode", size=height, channels=channels, flip=True)
        decode = pixels | ({"tokenizer": decode["tokenizer"]} if "tokenizer" in decode else {})
    return dict(train=source | {"split": "train"}, test=source | {"split": "test"}, decode=decode)


def get_config(arg: str = "", pictures: str | None = None) -> ConfigDict:
    """The page; the argument is the base's folder, runs/digits without one. `:tiny` trains all weights, without a base."""
    base = arg if arg not in ("", "tiny") else "runs/digits"
    of_base = plain(pages.read("digits") if base != arg else config_of(base))
    config = ConfigDict()
    config.seed = 0
    config.model = of_base["model"]
    config.task = {key: value for key, value in of_base["task"].items() if key != "first_stage"}
    config.data = data_of(of_base, pictures)
    if "train" not in config.data:
        raise ConfigError(f"{base} came without data: give --config.pictures=FOLDER")
    if Path(base, "first_stage").is_dir():
        config.first_stage = f"{base}/first_stage"
    config.init = base
    config.lora = dict(rank=4, alpha=4.0, layers=LAYERS)
    config.batch = 16
    config.accumulate = 1
    config.steps = 1000
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=3e-4, schedule="cosine", warmup=50, steps=config.steps,
        clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.99))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=250, keep=2)
    config.log_every = 25
    config.sample = of_base["sample"] | dict(num=16, every=250)
    config.evaluate = dict(num=0, guidance=1.0)
    if arg == "tiny":
        del config.init, config.lora
        return tiny(config, model=dict(width=32, depth=1), cond=dict(width=32))
    return config
