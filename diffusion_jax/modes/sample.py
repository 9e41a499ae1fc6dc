"""Mode `sample`: a run's folder -> a grid, a folder of PNGs, or an npz for an evaluator."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data import image
from diffusion_jax.modes import config as page
from diffusion_jax.pipelines.diffusion import conditions, generate
from diffusion_jax.train.checkpoint import load
from diffusion_jax.train.state import plain


def run(config: Any, workdir: str, options: Mapping[str, Any]) -> None:
    """Samples from the newest checkpoint; the folder alone is enough.

    Args:
      config: not needed: the checkpoint carries its own.
      workdir: the run's folder.
      options: num, label, seed, out, which, step, batch, and the fields of `Recipe`; what is not given comes from the
        checkpoint's config.

    Raises:
      ConfigError: a bad `out`, what `load`, `conditions` or `generate` refuse, or samples that are not finite.
    """
    options = dict(options)
    num, label = options.pop("num", 64), options.pop("label", None)
    seed, batch = options.pop("seed", 0), options.pop("batch", 100)
    target = options.pop("out", str(Path(workdir, "samples.png")))
    out = Path(target)
    if not target.endswith("/") and out.suffix not in (".png", ".npz"):
        raise ConfigError(f"--out {out}: end it in .png (a grid), .npz (arr_0, arr_1) or / (a folder of PNGs)")
    stored, task, params = load(workdir, options.pop("which", "ema"), options.pop("step", None))
    recipe = page.recipe_of(plain(stored), options)
    raw = conditions(task, num, label)
    batches = pixels_of(generate(task, params, recipe, raw, num, seed, batch), num)
    if target.endswith("/"):
        write_folder(out, batches, raw)
    else:
        images = np.concatenate(list(batches))
        if out.suffix == ".npz":
            out.parent.mkdir(parents=True, exist_ok=True)
            np.savez(out, arr_0=images, **({"arr_1": raw["label"]} if "label" in raw else {}))
        else:
            image.save_png(out, image.grid(images))
    print(f"{num} samples: {out}")


def pixels_of(batches: Iterator[np.ndarray], num: int) -> Iterator[np.ndarray]:
    """The batches as uint8, with a bar that counts images.

    Raises:
      ConfigError: a sample that is not finite, which would look like a black one.
    """
    from tqdm import tqdm

    with tqdm(total=num, unit="image", disable=jax.process_index() > 0) as bar:
        for batch in batches:
            if not np.isfinite(batch).all():
                raise ConfigError("the samples are not finite: change the sampler's options, or the weights (--which, --step)")
            yield image.to_uint8(batch)
            bar.update(len(batch))


def write_folder(out: Path, batches: Iterator[np.ndarray], raw: Mapping[str, np.ndarray]) -> None:
    """One PNG per image, 000000.png on, with the label in the name where there is one: 000000_3.png."""
    number = 0
    for batch in batches:
        for pixels in batch:
            name = f"{number:06d}_{raw['label'][number]}.png" if "label" in raw else f"{number:06d}.png"
            image.save_png(out / name, pixels)
            number += 1
