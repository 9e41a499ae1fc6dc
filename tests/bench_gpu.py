"""All that is to be known of one GPU in ten minutes: train steps, sampling, attention, and PyTorch beside them.

    python tests/bench_gpu.py --minutes 10 --out gpu.jsonl      # or some parts: python tests/bench_gpu.py steps attention
    JAX_PLATFORMS=cpu python tests/bench_gpu.py --tiny          # the same in seconds, to see that it runs

Each measurement is a process of its own, so that each has the whole memory, and writes a row of JSON; what did not run says why.
Of a train step (noise, forward, backward, AdamW, one average, bfloat16 as on the page) with F operations that recompute nothing
(planning/layouts.py), taking s seconds on a chip of P dense bf16 operations a second (cost/chips.py),

    MFU = F / (s P)                                                                   (1)

The batch is the largest power of two that fills at most `ROOM` of the memory by the layout's estimate, halved until it fits.
"""
from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import build
from diffusion_jax.cost.chips import CHIPS, Topology
from diffusion_jax.nn import attention, kernels
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.sampling import generate
from diffusion_jax.planning.layouts import Layout, Work, estimate_of, work_of
from diffusion_jax.runs import page, pages
from diffusion_jax.runs.folder import Model
from diffusion_jax.train import shard
from diffusion_jax.train.state import create, plain
from diffusion_jax.train.step import make_step

Row = dict[str, Any]
ROOM = 0.85
LARGEST = 4096
"""Images in a batch."""
STEPS = {
    "DiT-XL/2": "imagenet256_dit_xl2", "ADM 256": "imagenet256_adm", "Stable Diffusion 1": "stable_diffusion",
    "EDM2-S 64": "imagenet_edm2",
}
ATTENTION = {"DiT-XL/2 at 512": (8, 16, 1024, 72), "SD 1 at 512": (4, 8, 4096, 40), "SDXL at 1024": (2, 10, 4096, 64)}
"""[B, heads, T, d]."""


def config_of(name: str, tiny: bool) -> dict[str, Any]:
    """The page of a network, whose pictures are latents where it has a first stage."""
    config = plain(pages.read(f"{name}:tiny" if tiny else name))
    for part in ("first_stage", "init"):
        config.pop(part, None)
    return config | {"mesh": {"data": -1, "fsdp": 1, "tensor": 1}, "sharding": [[".*", "replicate"]]}


def chip_of(device: Any) -> str:
    """The name in cost/chips.py of a device: 'h200'; an H100 stands in for what is not there."""
    kind = device.device_kind.lower()
    return next((name for name in CHIPS if name in kind), "h100")


def memory_of(device: Any) -> float:
    """Bytes that JAX may use."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", 4e9)


def seconds(call: Callable[[], Any], most: float, least: int = 3) -> float:
    """The median time of a call that has run before, over at most `most` seconds."""
    times: list[float] = []
    while len(times) < least or sum(times) < most:
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def filled(shapes: Any) -> Any:
    """Numbers of a pytree of shapes: normal ones, or zeros where they count."""
    random = np.random.default_rng(0)

    def leaf(x: jax.ShapeDtypeStruct) -> np.ndarray:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return random.normal(size=x.shape).astype(x.dtype)
        return np.zeros(x.shape, x.dtype)

    return jax.tree.map(leaf, shapes)


def largest(work: Work, memory: float) -> int:
    """The largest power of two of images that is estimated to fit."""
    machine, layout, batch = Topology(chip_of(jax.devices()[0]), (1,)), Layout(1, 1, 1), 1
    while batch < LARGEST and estimate_of(work.of_batch(2 * batch), layout, machine).memory <= ROOM * memory:
        batch *= 2
    return batch


def steps(name: str, tiny: bool) -> Row:
    """One train step of a page."""
    device = jax.devices()[0]
    work = work_of(config_of(STEPS[name], tiny))
    batch = 8 if tiny else largest(work, memory_of(device))
    while True:
        try:
            return {"batch": batch, **step_of(work.of_batch(batch), 1.0 if tiny else 8.0)}
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or batch == 1:
                raise
            batch //= 2


def step_of(work: Work, most: float) -> Row:
    """Compiles and times the step of a batch."""
    config, device = work.config, jax.devices()[0]
    optimizer = build(config["optim"])
    emas = {name: build(spec) for name, spec in config["ema"].items()}
    mesh = shard.make_mesh(1, 1, 1, devices=[device])
    placed = shard.shardings(mesh, work.state)
    step = make_step(work.task, optimizer, emas, mesh, placed, seed=0)
    start = time.perf_counter()
    compiled: Any = step.lower(work.state, work.frozen, work.batch).compile()          # type: ignore[attr-defined]
    compile_s = time.perf_counter() - start
    batch = filled(work.batch)
    state = jax.jit(lambda key: create(work.task, optimizer, emas, key, work.batch), out_shardings=placed)(jax.random.key(0))
    frozen = filled(work.frozen)

    def call() -> Any:
        nonlocal state
        state, metrics = compiled(state, frozen, batch)
        return metrics

    jax.block_until_ready(call())
    took = seconds(call, most)
    flops = sum(work.model_flops.values())
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    return {
        "step_ms": 1e3 * took, "images_per_s": config["batch"] / took, "tflops": flops / took / 1e12,
        "mfu": flops / took / CHIPS[chip_of(device)].flops, "peak_gb": peak / 1e9, "compile_s": compile_s,
    }


def sampling(name: str, tiny: bool) -> Row:
    """250 steps with classifier-free guidance."""
    config = config_of(STEPS[name], tiny)
    work = work_of(config)
    num, count = (4, 5) if tiny else (64, 250)
    raw = {"image": filled(work.batch)["image"][:1], "label": jnp.zeros((1,), jnp.int32)}
    params = jax.jit(work.task.init)(jax.random.key(0), raw)
    recipe = Recipe.of(page.recipe_fields(config)).using(sampler="ddim", steps=count, times="uniform", guidance=1.5)
    model, labels = Model(params, None, work.task), {"label": np.arange(num, dtype=np.int32) % work.task.num_classes}

    def call() -> np.ndarray:
        return np.concatenate(list(generate(model, recipe, labels, num, 0, num)))

    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    took = seconds(call, 0.0, least=1)
    return {"batch": num, "steps": count, "images_per_s": num / took, "ms_per_step": 1e3 * took / count, "first_s": first}


def attentions(name: str, tiny: bool) -> Row:
    """Attention and its gradients in bfloat16: errors against full float32, over the largest values, and times."""
    shape = (1, 2, 64, 16) if tiny else ATTENTION[name]
    keys = jax.random.split(jax.random.key(0), 4)
    exact = [jax.random.normal(key, shape).astype(jnp.bfloat16) for key in keys]

    def both(forward: Callable[..., jax.Array]) -> Callable[..., Any]:
        def run(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
            out, back = jax.vjp(forward, q, k, v)
            return out, *back(g.astype(out.dtype))

        return jax.jit(run)

    with jax.default_matmul_precision("highest"):
        right = both(attention.plain)(*(x.astype(jnp.float32) for x in exact))
    row: Row = {"shape": shape}
    forms = {"xla": attention.plain} | ({"cudnn": kernels.cudnn} if jax.default_backend() == "gpu" else {})
    for form, forward in forms.items():
        run = both(forward)
        errors = {
            part: float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max())
            for part, a, b in zip(("out", "dq", "dk", "dv"), run(*exact), right, strict=True)
        }
        row[form] = errors | {"ms": 1e3 * seconds(functools.partial(run, *exact), 0.5)}
    return row


def pytorch(name: str, tiny: bool) -> Row:
    """The step of DiT-XL/2 in diffusers' network, bfloat16 by autocast, under torch.compile."""
    import diffusers
    import torch

    place = "cuda" if torch.cuda.is_available() else "cpu"
    heads, layers, batch = (2, 1, 2) if tiny else (16, 28, 128)
    network: Any = diffusers.DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=layers, sample_size=32,
        patch_size=2, num_embeds_ada_norm=1000,
    ).to(place)
    weights = list(network.parameters())
    average = [weight.detach().clone() for weight in weights]
    adam = torch.optim.AdamW(weights, 1e-4, fused=place == "cuda")
    run = network if tiny else torch.compile(network)
    x0, label = torch.randn(batch, 4, 32, 32, device=place), torch.arange(batch, device=place) % 1000

    def step() -> None:
        t, eps = torch.randint(0, 1000, (batch,), device=place), torch.randn_like(x0)
        with torch.autocast(place, torch.bfloat16):
            out = run(x0 + eps, t, label).sample.float()
        adam.zero_grad()
        ((out[:, :4] - eps) ** 2).mean().backward()
        adam.step()
        torch._foreach_lerp_(average, [weight.detach() for weight in weights], 1e-4)
        if place == "cuda":
            torch.cuda.synchronize()

    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    step()
    took = seconds(step, 1.0 if tiny else 8.0)
    return {"batch": batch, "step_ms": 1e3 * took, "images_per_s": batch / took, "first_s": first, "torch": torch.__version__}


PARTS: Mapping[str, tuple[Callable[[str, bool], Row], tuple[str, ...]]] = {
    "attention": (attentions, tuple(ATTENTION)),
    "steps": (steps, tuple(STEPS)),
    "sampling": (sampling, ("DiT-XL/2",)),
    "torch": (pytorch, ("DiT-XL/2",)),
}


def measured(part: str, name: str, tiny: bool, limit: float) -> Row:
    """A row, made in a process of its own."""
    command = [sys.executable, __file__, "--one", part, name, *(["--tiny"] if tiny else [])]
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"} | dict(os.environ)
    start = time.time()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        return {"part": part, "of": name, "error": f"not done after {limit:.0f} s"}
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines() or ["nothing was printed"]
    row = {"error": lines[-1]} if done.returncode else json.loads(lines[-1])
    return {"part": part, "of": name, **row, "wall_s": time.time() - start}


def main() -> None:
    """Prints a row of JSON for each measurement; exit code 1 where one did not run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts together")
    parser.add_argument("--out", default="", help="a file for the rows")
    parser.add_argument("--tiny", action="store_true", help="small networks, to see that it runs")
    parser.add_argument("--one", nargs=2, metavar=("PART", "NAME"), help="one measurement, in this process")
    options = parser.parse_args()
    if options.one:
        part, name = options.one
        device = jax.devices()[0]
        print(json.dumps({"device": device.device_kind, "jax": jax.__version__, **PARTS[part][0](name, options.tiny)}))
        return
    end, failed = time.time() + 60 * options.minutes, False
    for part in options.parts:
        for name in PARTS[part][1]:
            row = measured(part, name, options.tiny, max(end - time.time(), 1.0))
            failed |= "error" in row
            print(json.dumps(row), flush=True)
            if options.out:
                with open(options.out, "a") as file:
                    file.write(json.dumps(row) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
