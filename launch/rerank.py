"""Reranking: accuracy and FID against the number of candidates (Ramesh et al. 2021, figures 6, 9c).

    python launch/rerank.py runs/digits_dalle runs/judge runs/digits_classifier runs/rerank

Samples of the first folder, a run of configs/digits_dalle.py; the classifier in the second ranks
them, and another one in the third, trained from another seed (--config.seed=1), measures them, so
that no judge measures its own choice. Each N candidates are the first of the same 32: the curve is
not blurred by other draws. It ends as a table and a figure, rerank.csv and rerank.png.
"""
import sys
from pathlib import Path

import numpy as np

from diffusion_jax.data.digits import WORDS, Digits
from diffusion_jax.evaluation import compare, series
from diffusion_jax.evaluation.options import Features, Measure, Options
from diffusion_jax.pipelines import rerank
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.runs.folder import open_run
from diffusion_jax.tasks import kinds

NUMBERS = (1, 2, 4, 8, 16, 32)
"""Of candidates."""
EACH = 20
"""Images that are used of each class."""
FIGURES = ("accuracy", "FID", "precision", "recall")


def main(run: str, judge: str, features: str, out: str) -> None:
    """Writes <out>/rerank.csv and <out>/rerank.png."""
    captions = [f"a handwritten {word}" for word in WORDS]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    reference = save_digits(folder / "train.npz")
    pipe = pipeline(run)
    images = pipe(captions, num=EACH * NUMBERS[-1], batch=640).images
    pool = images.reshape(len(captions), -1, *images.shape[1:])  # [classes, candidates, H, W, C]
    classifier = open_run(judge, kinds.Classifier)
    scores = rerank.scores(classifier, rerank.goals(classifier, pipe.run, captions), pool)
    groups = pool.reshape(-1, NUMBERS[-1], *images.shape[1:])    # [classes * EACH, 32, H, W, C]
    ranks = scores.reshape(-1, NUMBERS[-1])                      # [classes * EACH, 32]
    rows = []
    for number in NUMBERS:
        best = rerank.best(groups[:, :number], ranks[:, :number], 1)[:, 0]
        path = folder / f"{number}.npz"
        np.savez(path, arr_0=best, arr_1=np.repeat(np.arange(len(captions)), EACH))
        measure = Measure(images=str(path), reference=str(reference))
        options = Options(measure, Features(features))
        figures = compare.of_images(out, options).numbers
        drawn = {name: figure for name, figure in figures.items() if is_drawn(name)}
        rows.append({"candidates": number} | drawn)
        print(rows[-1], flush=True)
    series.write(folder / "rerank", "candidates", rows)


def is_drawn(name: str) -> bool:
    """Whether a figure is in the picture: those of `FIGURES`, each in its network's features."""
    figure, _, network = name.partition("[")
    return figure in FIGURES and network.endswith("]")


def save_digits(path: Path) -> Path:
    """Writes the training images, to measure against."""
    source = Digits()
    digits = [source[i] for i in range(len(source))]
    labels = [digit["label"] for digit in digits]
    np.savez(path, arr_0=np.stack([digit["image"] for digit in digits]), arr_1=labels)
    return path


if __name__ == "__main__":
    main(*sys.argv[1:])
