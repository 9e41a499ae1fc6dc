"""Reranking: accuracy and FID against the number of candidates, as a table and a figure (Ramesh et al. 2021, figure 6 and 9c).

    python launch/rerank.py runs/digits_dalle runs/judge runs/digits_classifier runs/rerank

samples of the first folder, a run of configs/digits_dalle.py; the classifier in the second ranks them, and another one in the
third, trained from another seed (--config.seed=1), measures them, so that no judge measures its own choice. Each N candidates are
the first of the same 32: the curve is not blurred by other draws.
"""
import sys
from pathlib import Path

import numpy as np

from diffusion_jax.data.digits import WORDS, Digits
from diffusion_jax.evaluation import compare, series
from diffusion_jax.evaluation.options import Options
from diffusion_jax.pipelines import rerank
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.runs.folder import open_run
from diffusion_jax.tasks import kinds

NUMBERS = (1, 2, 4, 8, 16, 32)
EACH = 20                                              # images kept of each class
FIGURES = ("accuracy", "FID", "precision", "recall")


def main(run: str, judge: str, features: str, out: str) -> None:
    """Writes <out>/rerank.csv and <out>/rerank.png."""
    captions = [f"a handwritten {word}" for word in WORDS]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    digits = [Digits()[i] for i in range(len(Digits()))]
    np.savez(folder / "train.npz", arr_0=np.stack([d["image"] for d in digits]), arr_1=[d["label"] for d in digits])
    pipe = pipeline(run)
    images = pipe(captions, num=EACH * NUMBERS[-1], batch=640).images
    pool = images.reshape(len(captions), -1, *images.shape[1:])
    scores = rerank.scores(open_run(judge, kinds.Classifier), pipe.run, pool, captions)
    groups = pool.reshape(-1, NUMBERS[-1], *images.shape[1:])
    ranks = scores.reshape(-1, NUMBERS[-1])
    rows = []
    for number in NUMBERS:
        best = rerank.best(groups[:, :number], ranks[:, :number], 1)[:, 0]
        path = folder / f"{number}.npz"
        np.savez(path, arr_0=best, arr_1=np.repeat(np.arange(len(captions)), EACH))
        options = Options(images=str(path), features=features, reference=str(folder / "train.npz"))
        numbers = compare.of_images(out, options).numbers
        wanted = {name: value for name, value in numbers.items() if name.partition("[")[0] in FIGURES and name.endswith("]")}
        rows.append({"candidates": number} | wanted)
        print(rows[-1], flush=True)
    series.write(folder / "rerank", "candidates", rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
