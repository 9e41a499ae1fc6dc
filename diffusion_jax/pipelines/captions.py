"""What stands under pictures: their request in a line."""
from __future__ import annotations

from diffusion_jax.pipelines.samples import Samples

SAYS = ("steps", "guidance", "sampler")
"""Fields of a recipe that a line has."""


def captions(samples: Samples) -> list[str]:
    """A line for each picture: what it shows, its seed and number, and how it was sampled."""
    origin = samples.origin
    how = ", ".join(f"{name} {origin.recipe[name]}" for name in SAYS if name in origin.recipe)
    what: list[str] = []
    if samples.prompts is not None:
        what = list(samples.prompts)
    elif samples.labels is not None:
        what = [origin.class_of(int(label)) for label in samples.labels]
    lines = []
    for index in range(len(samples.images)):
        parts = [*what[index : index + 1], f"seed {origin.seed}, picture {index}", how]
        lines.append(" · ".join(part for part in parts if part))
    return lines
