"""Stable Diffusion 1 at 512x512: text to image in the latents of its autoencoder (arXiv 2112.10752), trained from the start.

    python -m diffusion_jax.main --mode import_weights --system vae --source vae-ft-ema-560000.safetensors --workdir runs/sd_vae
    python -m diffusion_jax.main --mode import_weights --system clip --source ViT-L-14.pt --workdir runs/clip_l14
    python -m diffusion_jax.main --config configs/stable_diffusion.py --workdir runs/sd
    python -m diffusion_jax.main --mode plan --config configs/stable_diffusion.py --workdir runs/plan --topology v5e:16x16

The published weights are imported, not trained: --mode import_weights --system sd. AdamW at a constant 1e-4, batch 2,048, EMA
0.9999, captions dropped at 0.1; the text tower is CLIP's ViT-L/14, frozen, from runs/clip_l14. The data are a folder of images
with captions. Hardware: a TPU pod; which layout fits, the last line says. This page has not been run and promises no number.
"""
from ml_collections import ConfigDict

from diffusion_jax.models.clip import preset
from diffusion_jax.runs.page import tiny


def get_config(arg: str = "") -> ConfigDict:
    """The page; the argument is the folder of images, `:tiny` runs in seconds."""
    folder = arg if arg not in ("", "tiny") else "data/laion"
    tower = preset("ViT-L/14")["text"] | dict(features=None, dtype="bfloat16")
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.unet:UNet", width=320, mults=(1, 2, 4, 4), depth=2, attend=(1, 2, 4), heads=8, transformer=1,
        scale_shift=False, resample="conv", channels=4, learn_sigma=False, dtype="bfloat16", remat="full",
    )
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.text_cond:TowerText", tower=tower),
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="scaled_linear", start=0.00085, end=0.012),
        scale=dict(name="diffusion_jax.diffusion.scales:Eps"),
        shape=(64, 64, 4),
        drop=dict(tokens=0.1),
    )
    source = "diffusion_jax.data.folder:Folder"
    config.data = dict(
        train=dict(name=source, path=f"{folder}/train"), test=dict(name=source, path=f"{folder}/test"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=512),
    )
    config.first_stage = "runs/sd_vae"
    config.init = {"cond/tower": "runs/clip_l14:model/text"}
    config.batch = 2048
    config.accumulate = 1
    config.steps = 500_000
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=1e-4, schedule="constant", warmup=10_000,
        weight_decay=0.01,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.9999))
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    config.sharding = ((".*", "fsdp"),)
    config.checkpoint = dict(every=5000, keep=2)
    config.log_every = 100
    config.sample = dict(num=16, every=5000, sampler="ddim", steps=50, times="leading,offset=1,last=0", guidance=7.5)
    config.evaluate = dict(num=0, guidance=7.5)
    # Captions of pages of the web are longer than CLIP's context, and were cut in the published training too.
    options = dict(context=77, pad_end=True, truncate=True)
    if arg == "tiny":
        del config.first_stage, config.init
        size = dict(width=32, mults=(1,), depth=1, attend=(1,), heads=2, channels=1, dtype="float32")
        config = tiny(config, model=size, cond={})
        config.task.cond.tower.update(vocab=514, width=16, layers=1, heads=2, context=8, dtype="float32")
        config.task.cond.update(empty=(512, 513, 513), context=8)
        options = dict(context=8, merges="", truncate=True)
    config.data.decode.tokenizer = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", **options)
    return config
