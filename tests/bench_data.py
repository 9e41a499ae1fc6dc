"""How fast batches arrive, against what a train step consumes: records, decoding, batching and the copy to the device.

    python tests/bench_data.py                      # or: python tests/bench_data.py latents --seconds 20

'digits' is the smallest page, configs/digits.py, beside its own train step; 'latents' are records of array_record as mode encode
writes them for images of 256 pixels, float16 moments [2, 32, 32, 4] of both views of an image, drawn, whitened and stacked.
"""
from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from diffusion_jax.data.digits import Digits
from diffusion_jax.data.image import Decode
from diffusion_jax.data.latents import ABOUT, Draw, Latents, Writer
from diffusion_jax.data.loader import Batches, stream
from diffusion_jax.diffusion.process import DDPM
from diffusion_jax.diffusion.scales import V
from diffusion_jax.models.cond import Label
from diffusion_jax.models.dit import DiT
from diffusion_jax.tasks.diffusion import Diffusion

RECORDS = 4096


def speed(batches: Iterator[Any], size: int, seconds: float) -> tuple[float, float]:
    """Images a second, and for each second of processor time, once the first batches have come."""
    for _ in itertools.islice(batches, 8):
        pass
    count, start, work = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        jax.block_until_ready(next(batches))
        count += size
    return count / (time.perf_counter() - start), count / (time.process_time() - work)


def digits(seconds: float) -> None:
    """The smallest page: what its data give and what its step takes."""
    from bench_train import ours

    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    given, each = speed(stream(Batches(Digits("train"), Decode(8, channels=1), 128, 0), 0, where), 128, seconds)
    model = DiT(patch=2, width=96, depth=4, heads=4, channels=1, learn_sigma=False, scan=True, remat="full")
    step, _ = ours(Diffusion(model, Label(10, 96), DDPM("squaredcos"), V(), (8, 8, 1)), 128)
    step()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        step()
        count += 128
    taken = count / (time.perf_counter() - start)
    print(f"digits: the data give {given:,.0f} images/s ({each:,.0f} for each second of processor time), the train step takes "
          f"{taken:,.0f}: {given / taken:.1f} times")


def latents(seconds: float) -> None:
    """Latents of images of 256 pixels."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        with Writer(folder, "train") as writer:
            for i in range(RECORDS):
                writer.write(rng.normal(size=(2, 2, 32, 32, 4)), {"label": i % 1000})
        about = {"names": None, "shape": [32, 32, 4], "mean": [0.0] * 4, "std": [1.0] * 4, "train": RECORDS}
        Path(folder, ABOUT).write_text(json.dumps(about))
        where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        found, each = speed(stream(Batches(Latents(folder), Draw(folder), 256, 0), 0, where), 256, seconds)
    print(f"latents of 256 px from array_record: {found:,.0f} images/s, {each:,.0f} for each second of processor time")


def main() -> None:
    """Prints one line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("which", nargs="?", choices=("digits", "latents"))
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    for name, bench in (("latents", latents), ("digits", digits)):
        if options.which in (None, name):
            bench(options.seconds)


if __name__ == "__main__":
    main()
