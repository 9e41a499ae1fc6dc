"""How fast batches arrive, against what a train step consumes: records, decoding, batching and the copy to the device.

    python tests/bench_data.py                      # or: python tests/bench_data.py latents --seconds 20

'digits' is the smallest page, configs/digits.py, beside its own train step; 'latents' are records of array_record as mode encode
writes them for images of 256 pixels, float16 moments [2, 32, 32, 4] of both views of an image, drawn, whitened and stacked.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from diffusion_jax.build import build
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.image import Decode
from diffusion_jax.data.latents import ABOUT, Draw, Latents, Writer
from diffusion_jax.data.loader import Batches, stream
from diffusion_jax.train import shard
from diffusion_jax.train.state import create, plain, task_of
from diffusion_jax.train.step import make_step

BATCH = 128
RECORDS = 4096


def speed(batch: Callable[[], Any], seconds: float, size: int = BATCH) -> tuple[float, float]:
    """Images a second, and for each second of processor time, after a few batches of warm-up."""
    for _ in range(8):
        batch()
    count, start, work = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        batch()
        count += size
    return count / (time.perf_counter() - start), count / (time.process_time() - work)


def train_step() -> Callable[[], None]:
    """One step of configs/digits.py on batches that lie ready."""
    config = plain(page().get_config())
    task, adam, emas = task_of(config), build(config["optim"]), {name: build(spec) for name, spec in config["ema"].items()}
    batch = {"image": np.zeros((BATCH, 8, 8, 1), np.float32), "label": np.arange(BATCH, dtype=np.int32) % 10}
    mesh = shard.make_mesh()
    state = create(task, adam, emas, jax.random.key(0), batch)
    shardings = shard.shardings(mesh, state)
    train, held = make_step(task, adam, emas, mesh, shardings), [jax.device_put(state, shardings)]

    def step() -> None:
        held[0], metrics = train(held[0], None, batch)
        jax.block_until_ready(metrics)

    return step


def page() -> Any:
    """configs/digits.py as a module."""
    spec = importlib.util.spec_from_file_location("digits", Path(__file__).parents[1] / "configs" / "digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digits(seconds: float) -> None:
    """The smallest page: what its data give and what its step takes."""
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    data = stream(Batches(Digits("train"), Decode(8, channels=1), BATCH, 0), 0, where)
    given, each = speed(lambda: jax.block_until_ready(next(data)), seconds)
    taken, per = speed(train_step(), seconds)
    print(f"digits: the data give {given:,.0f} images/s, the train step takes {taken:,.0f}: {given / taken:.1f} times; for each "
          f"second of processor time {each:,.0f} and {per:,.0f}: {each / per:.1f} times")


def latents(seconds: float, workers: int = 0) -> None:
    """Latents of images of 256 pixels; `workers` processes read them, none for the threads of this one."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        with Writer(folder, "train") as writer:
            for i in range(RECORDS):
                writer.write(rng.normal(size=(2, 2, 32, 32, 4)), {"label": i % 1000})
        about = {"names": None, "mean": [0.0] * 4, "std": [1.0] * 4, "train": RECORDS}
        Path(folder, ABOUT).write_text(json.dumps(about))
        where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        data = stream(Batches(Latents(folder), Draw(folder), BATCH, 0), 0, where, workers=workers)
        found, each = speed(lambda: jax.block_until_ready(next(data)), seconds)
        data.close()
    each = "" if workers else f", {each:,.0f} for each second of processor time"
    print(f"latents of 256 px from array_record, {workers} worker processes: {found:,.0f} images/s{each}")


def main() -> None:
    """Prints one line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("which", nargs="?", choices=("digits", "latents"))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=0, help="processes that read the latents")
    options = parser.parse_args()
    if options.which != "digits":
        latents(options.seconds, options.workers)
    if options.which != "latents":
        digits(options.seconds)


if __name__ == "__main__":
    main()
