"""Folders of a few small pictures, as people have them, and latents of such."""
import json

import numpy as np

from diffusion_jax.data.latents import ABOUT, Writer
from diffusion_jax.data.pictures import save_png
from diffusion_jax.runs.folder import save_start

CLASSES = ("daisy", "rose", "tulip")
CAPTIONS = ("a red rose", "a daisy in the grass", "two tulips, one of them white")
CODER = {
    "task": dict(name="diffusion_jax.tasks.autoencoder:Autoencoder", shape=[8, 8, 3], scale=[2.0, 2.0], shift=[0.0, 0.0]),
    "model": dict(name="diffusion_jax.models.vae:KL", channels=3, latent=2, width=8, mults=[1, 2], depth=1, groups=4),
}
"""The page of an autoencoder whose latents are of 4x4x2, measured."""


def picture(path, seed=0, shape=(10, 12, 3)):
    """A file of noise."""
    save_png(path, np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def classes(folder, each=6, shape=(10, 12, 3)):
    """A folder for each class, with so many pictures."""
    for number, name in enumerate(CLASSES):
        for i in range(each):
            picture(folder / name / f"{i}.png", number * each + i, shape)
    return folder


def loose(folder, num=12, shape=(10, 12, 3)):
    """Pictures without labels."""
    for i in range(num):
        picture(folder / f"{i}.png", i, shape)
    return folder


def told(folder):
    """A text beside each picture of a folder."""
    for i, file in enumerate(sorted(folder.rglob("*.png"))):
        file.with_suffix(".txt").write_text(CAPTIONS[i % 3])
    return folder


def captioned(folder, num=12):
    """Pictures with a text beside each."""
    return told(loose(folder, num))


def latents(folder, labelled=True, shape=(4, 4, 2)):
    """What mode encode writes of `classes`, its autoencoder without weights."""
    for split in ("train", "test"):
        with Writer(folder, split) as writer:
            for i in range(6):
                record = {"label": i % 3} if labelled else {}
                writer.write(np.zeros((1, 2, *shape), np.float32), record)
    about = {"names": list(CLASSES) if labelled else None, "mean": [0.0] * shape[-1], "std": [1.0] * shape[-1]}
    (folder / ABOUT).write_text(json.dumps(about))
    save_start(folder / "first_stage", CODER, {"model": {"weight": np.zeros(1)}})
    return folder
