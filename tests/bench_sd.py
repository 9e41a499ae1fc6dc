"""One step of Stable Diffusion 1's UNet against diffusers' in eager PyTorch: 64x64 latents, float32, in alternating runs.

    pip install torch diffusers
    python tests/bench_sd.py                        # or: --batch 2 --rounds 3 --width 320

Printed are seconds of one forward pass with text, ours over theirs (below 1 we are faster), and the peak memory of each process.
The weights are random, and alike in number; they do not change the time.
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import torch
from alternately import compare

from diffusion_jax.models.unet import UNet

SIDE, CHANNELS, TOKENS, TEXT, HEADS = 64, 4, 77, 768, 8
MULTS = (1, 2, 4, 4)


def ours(batch: int, width: int) -> tuple[Callable[[], None], int]:
    """(one forward pass, number of parameters)."""
    model = UNet(width=width, mults=MULTS, depth=2, attend=(1, 2, 4), heads=HEADS, transformer=1, scale_shift=False,
                 resample="conv", channels=CHANNELS, learn_sigma=False)
    x, noise, cond = jnp.ones((batch, SIDE, SIDE, CHANNELS)), jnp.zeros(batch), {"seq": jnp.ones((batch, TOKENS, TEXT))}
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, noise, cond)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), shapes)
    run = jax.jit(model.apply)
    return lambda: jax.block_until_ready(run(params, x, noise, cond)), sum(leaf.size for leaf in jax.tree.leaves(params))


def theirs(batch: int, width: int) -> tuple[Callable[[], None], int]:
    """The same of diffusers."""
    from diffusers import UNet2DConditionModel

    torch.set_num_threads(os.cpu_count() or 1)
    widths = [width * m for m in MULTS]
    network = UNet2DConditionModel(block_out_channels=widths, cross_attention_dim=TEXT, attention_head_dim=HEADS)
    network.eval()
    x, noise, text = torch.ones(batch, CHANNELS, SIDE, SIDE), torch.zeros(batch), torch.ones(batch, TOKENS, TEXT)

    def run() -> None:
        with torch.no_grad():
            network(x, noise, text)

    return run, sum(weight.numel() for weight in network.parameters())


def build(jax_side: bool, batch: int, width: int) -> tuple[Callable[[], None], int]:
    """One side, and its number of parameters."""
    return (ours if jax_side else theirs)(batch, width)


def main() -> None:
    """Prints a line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=320, help="of the first level: 320 is Stable Diffusion")
    args = parser.parse_args()
    found = compare(build, args.batch, args.width, rounds=args.rounds)
    ours, theirs = (f"{size / 1e6:.0f} M parameters, {seconds:.2f} s"
                    for size, seconds in zip(found.told, (found.ours, found.theirs), strict=True))
    print(f"UNet: {ours}; diffusers {theirs}; {found}")


if __name__ == "__main__":
    main()
