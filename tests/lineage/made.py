"""A comparison made by hand: what the tests of claims and pages look at, with nothing trained."""
import numpy as np

from diffusion_jax.data.digits import WORDS
from diffusion_jax.lineage import compare
from diffusion_jax.lineage.results import Comparison, Point, Spread, System
from diffusion_jax.lineage.stages import Budget, Lineage, Stage, Strength

EMPTY = Stage("", "", 2021, "", {}, {}, False, {}, None, "label")
STAGES = (
    EMPTY._replace(key="measure", name="classifier that measures", page="digits_classifier", helper=True),
    EMPTY._replace(key="guide", name="noisy classifier", page="digits_classifier", helper=True),
    EMPTY._replace(key="clip", name="CLIP", page="digits_clip", helper=True),
    EMPTY._replace(key="dvae", name="discrete VAE", page="digits_dvae", helper=True),
    EMPTY._replace(key="prior", name="diffusion prior", page="digits_unclip:prior", needs={"first_stage": "clip"}, helper=True),
    EMPTY._replace(key="dalle", name="DALL·E", page="digits_dalle", needs={"dvae": "dvae", "judge": "clip"}, ask="prompt",
                   strength=Strength("candidates", (1, 4))),
    EMPTY._replace(key="adm", name="ADM", page="digits_adm", needs={"classifier": "guide"},
                   strength=Strength("classifier_scale", (0, 4))),
    EMPTY._replace(key="unclip", name="unCLIP", year=2022, page="digits_unclip", needs={"first_stage": "clip", "prior": "prior"},
                   ask="prompt", strength=Strength("guidance", (1, 4))),
    EMPTY._replace(key="dit", name="DiT", year=2022, page="digits", strength=Strength("guidance", (1, 4))),
    EMPTY._replace(key="cads", name="CADS", year=2023, needs={"run": "dit"}, sample={"guidance": 4.0, "cads": "s=0.1"},
                   strength=Strength("cads.s", (0, 0.1))),
)
LINEAGE = Lineage(STAGES, "measure", "measure", None, "digits", 3, tuple("0123456789"),
                  tuple(f"a handwritten {word}" for word in WORDS), Budget("flops", 4e12))


def spreads(seeds=3, **figures):
    """Figures of some seeds, each 0.01 from the next, by names with '_' for ' '."""
    steps = 0.01 * (np.arange(seeds) - (seeds - 1) / 2)
    return {name.replace("_", " "): Spread(tuple(value + step for step in steps)) for name, value in figures.items()}


def system(key, seeds=3, error="", ends=None, **figures):
    """A system of `STAGES`; `ends` are figures of the first and the last point of its curve."""
    stage = next(stage for stage in STAGES if stage.key == key)
    curve = ()
    if ends is not None and stage.strength is not None:
        curve = tuple(Point(value, spreads(seeds, **row)) for value, row in zip(stage.strength.values, ends, strict=True))
    training = (Point(1e12, spreads(seeds, FID=9.0)), Point(4e12, spreads(seeds, FID=5.0))) if figures else ()
    pictures = np.zeros((40, 8, 8, 1), np.uint8) if figures else None
    along = np.zeros((20, 8, 8, 1), np.uint8) if curve else None
    return System(stage, seeds if figures else 0, error, spreads(seeds, **figures), curve, training, pictures, along, 10)


def comparison(seeds=3, error="it ran <out> of memory"):
    """ADM and DiT measured, DALL·E failed."""
    systems = (
        system("dalle", seeds, error),
        system("adm", seeds, FID=5.0, precision=0.8, recall=0.6, coverage=0.7, accuracy=0.7,
               ends=[dict(FID=5, recall=0.7, coverage=0.7, accuracy=0.5), dict(FID=6, recall=0.5, coverage=0.6, accuracy=0.9)]),
        system("dit", seeds, FID=3.0, precision=0.8, recall=0.7, coverage=0.8, accuracy=0.9,
               ends=[dict(FID=3, recall=0.7, coverage=0.8, accuracy=0.9), dict(FID=4, recall=0.7, coverage=0.7, accuracy=0.95)]),
        system("cads", seeds, FID=3.5, recall=0.8, accuracy=0.9),
    )
    lineage = LINEAGE._replace(seeds=seeds)
    real = {"FID": 0.2, "precision": 0.9, "recall": 0.9, "coverage": 0.95, "accuracy": 0.99}
    return Comparison(lineage, systems, real, 300, compare.pages_of(lineage), ("CLIP is shared.",))
