"""Oxford-102 flowers at 64x64 or 128x128, class-conditional DiT in the latents of a published tiny autoencoder (TAEF2).

    python -m diffusion_jax.main --mode import_weights --system tae --source weights/ --workdir runs/tae
    python -m diffusion_jax.main --mode encode --workdir runs/tae --config configs/flowers102_dit.py:../shared/data/flowers102 \\
        --out runs/flowers_tae
    python -m diffusion_jax.main --config configs/flowers102_tae.py:runs/flowers_tae --workdir runs/flowers64

weights/ holds taef2_encoder.pth and taef2_decoder.pth of github.com/madebyollin/taesd (MIT, 5 MB each). The second command reads
images128.zip and labels.json in the folder behind the colon, or oxford_flowers102 from TFDS where there is none, and writes each
flower and its mirror image as 8x8x32 numbers, of mean 0 and deviation 1 in each channel. For 128x128 and latents of 16x16x32,
from the network of 64x64, which has the same size and saw as many flowers in a quarter of the time:

    python -m diffusion_jax.main --mode encode --workdir runs/tae --config configs/flowers102_dit.py:../shared/data/flowers102 \\
        --config.data.decode.size=128 --out runs/flowers_tae128
    python -m diffusion_jax.main --config configs/flowers102_tae.py:runs/flowers_tae128 --config.size=128 \\
        --config.init.model=runs/flowers64:model --workdir runs/flowers128

From made-up captions ("a photo of a white passion flower, a type of flower") in place of classes, whose tokenizer needs
pip install open_clip_torch:

    python -m diffusion_jax.main --mode encode --workdir runs/tae --config configs/flowers102_clip.py:../shared/data/flowers102 \\
        --config.data.decode.size=64 --out runs/flowers_tae_text
    python -m diffusion_jax.main --config configs/flowers102_tae.py:runs/flowers_tae_text,text --workdir runs/flowers_text
    python -m diffusion_jax.main --workdir runs/flowers_text --mode sample --guidance 4 \\
        --prompt "a photo of a red rose, a type of flower"

Hardware: 2 CPU cores, an hour at 64x64 (67 minutes beside other work, 384,000 pictures). Expect a loss on held-out flowers of
1.36 after 1,000 steps, 1.32 after 2,000 and 1.286 at the end, and pictures most of which are named at once (docs/gallery.md).
128x128 takes 80 minutes of one core, encoding 27 more; expect 1.200 after 1,000 steps and 1.196 at the end. From captions, 2,000
steps take 43 minutes of one core; expect 1.403 after 1,000 and 1.364 at the end.
"""
from ml_collections import ConfigDict

from diffusion_jax.build import ConfigError
from diffusion_jax.runs.page import tiny, variant

FACTOR, CHANNELS = 8, 32
"""Of TAEF2's latents."""
STEPS, RATE = {64: 6000, 128: 1600}, {64: 1e-3, 128: 5e-4}
"""By the side of a picture; at 128 for a network that has learned at 64."""
TEXT_STEPS = 2000
CONTEXT, MERGES, WIDTH = 24, 3582, 256


def reads_captions(config: ConfigDict) -> None:
    """What is other where captions are read: they go through a text tower, which learns with the network."""
    vocab = 512 + MERGES + 2
    tower = dict(
        name="diffusion_jax.models.clip:TextTower", features=None, vocab=vocab, context=CONTEXT, width=WIDTH, layers=2, heads=4,
    )
    config.model.block = "cross_attention"
    config.task.cond = dict(
        name="diffusion_jax.models.text_cond:TowerText", tower=tower, empty=(vocab - 2, vocab - 1, 0), context=CONTEXT,
        frozen=False,
    )
    config.task.drop = dict(tokens=0.1)
    config.data.decode.tokenizer = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=CONTEXT, most=MERGES)
    config.steps = config.optim.steps = TEXT_STEPS


def get_config(arg: str = "", size: int = 64) -> ConfigDict:
    """The page; the argument is the folder of latents of pictures of `size`, and perhaps `,text`; `:tiny` trains on pixels and
    runs in seconds."""
    folder, _, part = arg.partition(",")
    variant(part, "", "text")
    if size not in STEPS:
        raise ConfigError(f"size {size}: this page has --config.size=64 and 128")
    if folder in ("", "tiny"):
        folder = "runs/flowers_tae"
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.dit:DiT", width=WIDTH, depth=8, heads=4, patch=2, channels=CHANNELS, learn_sigma=False,
        scan=True, remat="dots",
    )
    config.task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.cond:Label", num_classes=102, width=WIDTH),
        process=dict(name="diffusion_jax.diffusion.process:Flow"),
        scale=dict(name="diffusion_jax.diffusion.scales:Velocity"),
        shape=(size // FACTOR, size // FACTOR, CHANNELS),
        times=dict(name="diffusion_jax.diffusion.times:LogitNormal"),
        drop=dict(label=0.1),
    )
    latents = "diffusion_jax.data.latents:Latents"
    config.data = dict(
        train=dict(name=latents, path=folder, split="train"), test=dict(name=latents, path=folder, split="test"),
        decode=dict(name="diffusion_jax.data.latents:Draw", path=folder),
    )
    config.first_stage = f"{folder}/first_stage"
    config.batch = 64
    config.accumulate = 1
    config.steps = STEPS[size]
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=RATE[size], schedule="cosine",
        warmup=min(300, config.steps // 16), steps=config.steps, clip=1.0,
    )
    power = "diffusion_jax.train.ema:Power"
    config.ema = dict(ema=dict(name=power, std=0.05), long=dict(name=power, std=0.10))
    config.snapshots = dict(every=500)
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=500, keep=2)
    config.log_every = 50
    config.sample = dict(num=32, every=1000, sampler="dpmpp_2m", steps=25, times="uniform", guidance=2.0)
    config.evaluate = dict(num=0, guidance=2.0)
    config.validate = dict(every=500, num=818)
    if part == "text":
        reads_captions(config)
    if arg == "tiny":
        del config.first_stage
        return tiny(config, model=dict(width=32, depth=1, heads=4, channels=1), cond=dict(width=32))
    return config
