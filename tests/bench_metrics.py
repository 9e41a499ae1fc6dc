"""Features of the FID Inception against pytorch-fid: the same images, batch and threads, in alternating runs.

    pip install torch pytorch-fid
    python tests/bench_metrics.py                   # or: --batch 16 --size 64 --rounds 5

Printed are images per second on each side, from uint8 to the 2048 features, and our time over theirs; below 1 we are faster. The
weights are made up: they do not change the time.
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch
from alternately import compare

from diffusion_jax.metrics.networks import inception
from diffusion_jax.models.inception import Inception


def build(ours: bool, batch: int, size: int) -> tuple[Callable[[], None], None]:
    """One side: the features of one batch."""
    torch.set_num_threads(os.cpu_count() or 1)
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    if ours:
        shapes = jax.eval_shape(Inception().init, jax.random.key(0), np.zeros((1, 299, 299, 3), np.float32))["params"]
        params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.01, leaf.dtype), shapes)
        network = inception(params, "pytorch_fid")
        see = jax.jit(lambda params, images: network.see(params, images)["features"])
        return lambda: jax.block_until_ready(see(network.params, images)), None
    from pytorch_fid import inception as peer

    peer.load_state_dict_from_url = lambda *args, **options: peer._inception_v3(num_classes=1008, aux_logits=False).state_dict()
    network = peer.InceptionV3()
    network.eval()

    def see() -> None:
        with torch.no_grad():
            network(torch.tensor(images).permute(0, 3, 1, 2).float() / 255)

    return see, None


def main() -> None:
    """Prints a line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    found = compare(build, args.batch, args.size, rounds=args.rounds)
    ours, theirs = (args.batch / seconds for seconds in (found.ours, found.theirs))
    print(f"Inception: {ours:.2f} images/s, pytorch-fid {theirs:.2f}, {found}")


if __name__ == "__main__":
    main()
