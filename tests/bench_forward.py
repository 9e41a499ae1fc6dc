"""What sampling and encoding cost, against diffusers in eager PyTorch: the same sizes, batch and threads, in alternating runs.

    pip install torch diffusers
    python tests/bench_forward.py                   # or: python tests/bench_forward.py sampler --batch 4 --rounds 5

'sampler' is one DDIM step of DiT-S/2 with classifier-free guidance (two passes in one batch), 'autoencoder' one encoding of a
64x64 image by a KL autoencoder of Stable Diffusion's form at half its width. Printed are the seconds of one call, ours over
theirs (below 1 we are faster), the seconds until the first was done, and the peak memory of each process. The weights are random.
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import diffusers
import jax
import jax.numpy as jnp
import torch
from alternately import compare

from diffusion_jax.models.dit import DiT, preset
from diffusion_jax.models.vae import KL

SIZE = preset("DiT-S/2")
WIDTHS = (64, 128, 256, 256)


def sampler(ours: bool, batch: int) -> Callable[[], None]:
    """One guided step."""
    if not ours:
        network = diffusers.DiTTransformer2DModel(
            num_attention_heads=SIZE["heads"], attention_head_dim=SIZE["width"] // SIZE["heads"], in_channels=4, out_channels=4,
            num_layers=SIZE["depth"], sample_size=32, patch_size=2, num_embeds_ada_norm=1000,
        ).eval()
        both, t, label = torch.ones(2 * batch, 4, 32, 32), torch.zeros(2 * batch), torch.arange(2 * batch)
        return lambda: network(both, t, label).sample
    model = DiT(**SIZE, channels=4, learn_sigma=False, scan=True)
    x, cond = jnp.ones((2 * batch, 32, 32, 4)), {"vec": jnp.ones((2 * batch, SIZE["width"]))}
    params = jax.jit(model.init)(jax.random.key(0), x, jnp.zeros(2 * batch), cond)
    run = jax.jit(lambda params, x, cond: model.apply(params, x, jnp.zeros(2 * batch), cond))
    return lambda: jax.block_until_ready(run(params, x, cond))


def autoencoder(ours: bool, batch: int) -> Callable[[], None]:
    """One encoding."""
    if not ours:
        network = diffusers.AutoencoderKL(
            block_out_channels=WIDTHS, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        ).eval()
        images = torch.ones(batch, 3, 64, 64)
        return lambda: network.encode(images).latent_dist.mean
    model = KL(width=WIDTHS[0], mults=tuple(width // WIDTHS[0] for width in WIDTHS))
    images = jnp.ones((batch, 64, 64, 3))
    params = jax.jit(lambda key: model.init(key, images))(jax.random.key(0))
    run = jax.jit(lambda params, images: model.apply(params, images, method="encode"))
    return lambda: jax.block_until_ready(run(params, images))


PARTS = {"sampler": sampler, "autoencoder": autoencoder}


def build(ours: bool, name: str, batch: int) -> tuple[Callable[[], None], None]:
    """One side."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_grad_enabled(False)
    return PARTS[name](ours, batch), None


def main() -> None:
    """Prints a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for name in args.parts:
        found = compare(build, name, args.batch, rounds=args.rounds)
        print(f"{name}: {found.ours:.3f} s, diffusers {found.theirs:.3f} s, {found}", flush=True)


if __name__ == "__main__":
    main()
