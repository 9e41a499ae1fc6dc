"""Train steps against PyTorch: the same network size, batch, precision and threads on the same machine, in alternating runs.

    pip install torch diffusers
    python tests/bench_train.py                     # or: python tests/bench_train.py unet --batch 8 --rounds 5 --steps 4

One step is: noise, forward, mean squared error, backward, AdamW, one average of the weights; float32, eager PyTorch. Printed is
the time of one step on each side (median over the rounds), ours over theirs (below 1 we are faster), the seconds until the first
step was done, compiled with all, and the peak memory of each process.
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from alternately import compare

from diffusion_jax.diffusion.process import DDPM
from diffusion_jax.diffusion.scales import Eps
from diffusion_jax.models.cond import Label, Nothing
from diffusion_jax.models.dit import DiT, preset
from diffusion_jax.models.unet import UNet
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.train import shard
from diffusion_jax.train.ema import Constant
from diffusion_jax.train.optim import optimizer
from diffusion_jax.train.state import create
from diffusion_jax.train.step import make_step

CLASSES = 10


def ours(task: Diffusion, batch: int) -> tuple[Callable[[], None], int]:
    """(one train step, number of parameters)."""
    images = np.random.default_rng(0).normal(size=(batch, *task.shape)).astype(np.float32)
    raw = {"image": jnp.asarray(images), "label": jnp.arange(batch) % CLASSES}
    mesh, emas = shard.make_mesh(), {"ema": Constant(0.9999)}
    adam = optimizer("adamw", 1e-4)
    state = create(task, adam, emas, jax.random.key(0), raw)
    shardings = shard.shardings(mesh, state)
    train, held = make_step(task, adam, emas, mesh, shardings), [jax.device_put(state, shardings)]

    def step() -> None:
        held[0], metrics = train(held[0], None, raw)
        jax.block_until_ready((held[0], metrics))

    return step, sum(leaf.size for leaf in jax.tree.leaves(state.params))


def theirs(network: torch.nn.Module, shape: tuple[int, int, int], batch: int, labels: bool) -> tuple[Callable[[], None], int]:
    """(one train step, number of parameters)."""
    weights = list(network.parameters())
    average = [weight.detach().clone() for weight in weights]
    adam = torch.optim.AdamW(weights, 1e-4)
    h, w, c = shape
    x0, label = torch.randn(batch, c, h, w), torch.arange(batch) % CLASSES
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)

    def step() -> None:
        t, eps = torch.randint(0, 1000, (batch,)), torch.randn_like(x0)
        kept = alpha_bar[t].view(-1, 1, 1, 1)
        xt = kept.sqrt() * x0 + (1 - kept).sqrt() * eps
        out = network(xt, t, label).sample if labels else network(xt, t).sample
        adam.zero_grad()
        ((out - eps) ** 2).mean().backward()
        adam.step()
        torch._foreach_lerp_(average, weights, 1e-4)

    return torch.enable_grad()(step), sum(weight.numel() for weight in weights)


def dit() -> tuple[Diffusion, torch.nn.Module]:
    """DiT-S/2 on 32x32x4 latents."""
    size = preset("DiT-S/2")
    model = DiT(**size, channels=4, learn_sigma=False, scan=True, remat="dots")
    task = Diffusion(model, Label(CLASSES, size["width"]), DDPM(), Eps(), (32, 32, 4))
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=size["heads"], attention_head_dim=size["width"] // size["heads"], in_channels=4, out_channels=4,
        num_layers=size["depth"], sample_size=32, patch_size=2, num_embeds_ada_norm=CLASSES,
    )
    return task, network


def unet() -> tuple[Diffusion, torch.nn.Module]:
    """A UNet on 32x32x3 images: three levels of 64, 128 and 256 channels, attention at 16x16 and 8x8."""
    model = UNet(width=64, mults=(1, 2, 4), depth=2, attend=(2, 4), head_channels=32, resample="conv", learn_sigma=False)
    task = Diffusion(model, Nothing(), DDPM(), Eps(), (32, 32, 3))
    network = diffusers.UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(64, 128, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"), attention_head_dim=32,
        resnet_time_scale_shift="scale_shift",
    )
    return task, network


NETWORKS = {"dit": dit, "unet": unet}


def build(jax_side: bool, name: str, batch: int) -> tuple[Callable[[], None], int]:
    """One side of a comparison, and its number of parameters."""
    torch.set_num_threads(os.cpu_count() or 1)
    task, network = NETWORKS[name]()
    return ours(task, batch) if jax_side else theirs(network, task.shape, batch, bool(task.cond.keys))


def main() -> None:
    """Prints a line for each network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="per round and side")
    args = parser.parse_args()
    for name in args.networks:
        found = compare(build, name, args.batch, rounds=args.rounds, calls=args.steps)
        sizes = [size / 1e6 for size in found.told]
        print(f"{name}: {sizes[0]:.1f} M parameters {found.ours:.3f} s, PyTorch {sizes[1]:.1f} M {found.theirs:.3f} s, {found}",
              flush=True)


if __name__ == "__main__":
    main()
