"""Benchmarks of token transformers, run by hand: python tests/bench_dalle.py [sampling] [attention].

sampling     seconds per token with the cache, of images of 64 and of 256 tokens by the same layers, and of one token without a
             cache, which is one run over the whole sequence
attention    seconds of forward and backward of one layer's attention, masked dense product against blocks, by pattern and grid

On a CPU seconds are those that the process computed, on all its threads: what other processes take is not in them. For the time
on one core of an idle machine let it have one thread,

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false OMP_NUM_THREADS=1 python tests/bench_dalle.py
"""
import sys
import time

import jax
import jax.numpy as jnp

from diffusion_jax.models.dalle import DALLE
from diffusion_jax.nn.sparse_attention import Pattern, dense_attention, sparse_attention
from diffusion_jax.pipelines.dalle import Draw, draw

KEY = jax.random.key(0)


def seconds(run, *args, rounds=7):
    """The fastest of several rounds, after one that compiles."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    jax.block_until_ready(run(*args))
    best = float("inf")
    for _ in range(rounds):
        start = clock()
        jax.block_until_ready(run(*args))
        best = min(best, clock() - start)
    return best


def sampling(width=256, depth=8, batch=8, text=16):
    """The table of sampling."""
    per_token = {}
    for grid in (8, 16):
        model = DALLE(text_codes=64, image_codes=512, text_length=text, grid=grid, width=width, depth=depth, heads=4, start=0)
        prompt, image = jnp.ones((batch, text), jnp.int32), jnp.zeros((batch, grid**2), jnp.int32)
        params = jax.jit(model.init)(KEY, prompt, image)
        index = jnp.arange(batch)
        none = image[:, :0]
        cached = jax.jit(lambda p, m=model, t=prompt, i=none, n=index: draw(m, Draw(), {"model": p["params"]}, t, i, n, KEY))
        whole = jax.jit(lambda p, m=model, t=prompt, i=image: m.apply(p, t, i)[1])
        per_token[grid] = seconds(cached, params, rounds=4) / grid**2
        print(f"{grid**2:4} tokens  cached {1e3 * per_token[grid]:7.2f} ms per token  "
              f"uncached {1e3 * seconds(whole, params, rounds=4):8.2f} ms per token")
    print(f"256 / 64 tokens: {per_token[16] / per_token[8]:.2f}")


def attention(batch=1, heads=4, channels=64):
    """The table of attention."""
    for grid, text in ((8, 16), (16, 64), (32, 256)):
        for kind in ("row", "column", "conv"):
            pattern = Pattern(kind, text, grid)
            q, k, v = (jax.random.normal(key, (batch, heads, pattern.length, channels)) for key in jax.random.split(KEY, 3))
            times = [seconds(jax.jit(jax.grad(lambda q, k, v, f=f, p=pattern: jnp.sum(f(q, k, v, p) ** 2), (0, 1, 2))), q, k, v)
                     for f in (dense_attention, sparse_attention)]
            print(f"grid {grid:2}  text {text:3}  {kind:6}  dense {1e3 * times[0]:8.2f} ms  blocks {1e3 * times[1]:8.2f} ms  "
                  f"{times[0] / times[1]:.2f} x")


if __name__ == "__main__":
    print(f"backend {jax.default_backend()}, {len(jax.devices())} device(s)")
    for name in sys.argv[1:] or ("sampling", "attention"):
        {"sampling": sampling, "attention": attention}[name]()
