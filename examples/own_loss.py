"""A loss of your own, on arrays of your own, with the training loop as a library: for a script or a notebook.

    python own_loss.py runs/own_loss
    python -m diffusion_jax.main --mode sample --workdir runs/own_loss --label 3 --allow own_loss
"""
import itertools
import sys
from dataclasses import dataclass

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import diffusion_jax as dj
from diffusion_jax.build import allow
from diffusion_jax.diffusion.losses import snr
from diffusion_jax.runs.library import recording
from diffusion_jax.train import ema, loop, shard
from diffusion_jax.types import Array, Process, Scales


@dataclass(frozen=True)
class Sigmoid:
    """w = sigmoid(bias - log snr) on eps (2303.00848): times at which a picture is all but clean count for less."""

    bias: float = 1.0

    def __call__(self, process: Process, t: Array, c: Scales) -> Array:
        """The weight of |F - F*|^2, [B]: w snr out^2, since |eps - eps'|^2 is snr |x0 - x0'|^2."""
        return c.out**2 / (1 / snr(process, t) + np.exp(-self.bias))


def main(folder: str, total: int = 1000) -> None:
    """Trains, or goes on training, and draws sixteen threes."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 8 - 1).reshape(-1, 8, 8, 1).astype(np.float32)  # [1797, 8, 8, 1] in [-1, 1]

    def batches(start, sharding):
        for step in itertools.count(start):  # by its number alone: what was stopped goes on bit for bit
            rows = np.random.default_rng((0, step)).integers(len(images), size=128)
            yield step, jax.device_put({"image": images[rows], "label": labels[rows]}, sharding)

    model = dict(name="diffusion_jax.models.dit:DiT", patch=2, width=96, depth=4, heads=4, channels=1, learn_sigma=False)
    task = dict(name="diffusion_jax.tasks.diffusion:Diffusion", shape=(8, 8, 1), weight=dict(name="own_loss:Sigmoid", bias=1.0),
                cond=dict(name="diffusion_jax.models.cond:Label", num_classes=10, width=96), drop=dict(label=0.1),
                process=dict(name="diffusion_jax.diffusion.process:Cosine"), scale=dict(name="diffusion_jax.diffusion.scales:V"))
    allow("own_loss")  # the page names it, so that whoever opens the folder has the task
    with recording(folder, dict(model=model, task=task), every=500, class_names="0123456789") as run:
        steps = loop.steps(task=run.task, checkpoints=run.checkpoints, writer=run.writer, optimizer=optax.adam(2e-3),
                           emas={"ema": ema.Constant(0.995)}, batches=batches, total=int(total), mesh=shard.make_mesh())
        for _step, _state in steps:  # whatever is to be looked at stands here
            pass
    dj.pipeline(folder)(3, num=16).save(f"{folder}/threes.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
