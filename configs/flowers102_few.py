"""Oxford-102 flowers at 64x64 in 1, 2 or 4 steps: models of the latents and the run of configs/flowers102_tae.py.

    python -m diffusion_jax.main --config configs/flowers102_few.py:runs/flowers_tae --workdir runs/flowers_few
    python -m diffusion_jax.main --config configs/flowers102_few.py:runs/flowers_tae,meanflow --workdir runs/flowers_meanflow

The argument is the folder of latents, which holds their autoencoder. The first command distils a consistency model (2303.01469)
from runs/flowers64, whose classifier-free guidance of 2 becomes a part of it, so that it samples at guidance 1; for another
teacher give --config.teacher=FOLDER --config.init=FOLDER. The second trains a mean flow (2505.13447) from scratch, guided by 2
as well.

Hardware: 2 CPU cores, some hours. It has not been run: this page promises no number.
"""
from ml_collections import ConfigDict

from diffusion_jax.runs.page import tiny, variant

WIDTH, CHANNELS = 256, 32
TEACHER = "runs/flowers64"
TASKS = dict(
    consistency=dict(
        name="diffusion_jax.tasks.consistency:Consistency", guidance=2.0, every=40_000, halvings=7,
        times=dict(name="diffusion_jax.diffusion.times:LogNormal", mean=-0.4, std=1.6),
    ),
    meanflow=dict(
        name="diffusion_jax.tasks.meanflow:MeanFlow", omega=1.0, kappa=0.5, ratio=0.25,
        times=dict(name="diffusion_jax.diffusion.times:LogitNormal", mean=-0.4, std=1.0),
    ),
)


def get_config(arg: str = "") -> ConfigDict:
    """The page; the argument is the folder of latents, and perhaps `,meanflow`; `:tiny` trains on pixels and runs in seconds."""
    folder, _, part = arg.partition(",")
    variant(part, "", "meanflow")
    if folder in ("", "tiny"):
        folder = "runs/flowers_tae"
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        name="diffusion_jax.models.dit:DiT", width=WIDTH, depth=8, heads=4, patch=2, channels=CHANNELS, learn_sigma=False,
        scan=True, remat="dots", interval=part == "meanflow",
    )
    config.task = dict(
        cond=dict(name="diffusion_jax.models.cond:Label", num_classes=102, width=WIDTH),
        process=dict(name="diffusion_jax.diffusion.process:Flow"),
        scale=dict(name="diffusion_jax.diffusion.scales:Velocity"),
        shape=(8, 8, CHANNELS),
        drop=dict(label=0.1),
    )
    config.task.update(TASKS[part or "consistency"])
    if not part:
        config.init = config.teacher = TEACHER
    latents = "diffusion_jax.data.latents:Latents"
    config.data = dict(
        train=dict(name=latents, path=folder, split="train"), test=dict(name=latents, path=folder, split="test"),
        decode=dict(name="diffusion_jax.data.latents:Draw", path=folder),
    )
    config.first_stage = f"{folder}/first_stage"
    config.batch = 64
    config.accumulate = 1
    config.steps = 5000
    config.optim = dict(
        name="diffusion_jax.train.optim:optimizer", method="adamw", lr=5e-4, schedule="cosine", warmup=300, steps=config.steps,
        clip=1.0,
    )
    config.ema = dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.999))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = ((".*", "replicate"),)
    config.checkpoint = dict(every=500, keep=2)
    config.log_every = 50
    config.sample = dict(
        num=32, every=1000, sampler=part or "lcm", steps=2, times="uniform", guidance=1.0)
    config.evaluate = dict(num=0, guidance=1.0)
    if arg == "tiny":
        del config.first_stage, config.init, config.teacher, config.task.guidance
        return tiny(config, model=dict(width=32, depth=1, heads=4, channels=1), cond=dict(width=32))
    return config
