"""Attention by hand-written kernels, which never hold all T x S weights: cuDNN's on NVIDIA GPUs, Pallas's on TPUs.

    attention(q, k, v) = softmax(q k^T / sqrt(d)) v,    block by block with a running maximum and sum     2205.14135

Which one computes, platform and shapes decide (`backend`): a kernel pays for many tokens, wants sizes of its own and knows
no bias that is the same for all samples. On a short sequence XLA's products are as fast, and exact in float32.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec

from diffusion_jax.nn import partition
from diffusion_jax.types import Array

LONG = 1024                  # tokens from which on a kernel computes
LANES, ROWS = 128, 512       # of a TPU's registers; tokens of a block


def backend(platform: str, q: Array, k: Array, biased: bool, mesh: Mesh | None = None) -> str:
    """'xla', 'cudnn' or 'flash' for attention of these shapes.

    Args:
      platform: 'cpu', 'tpu', 'cuda' ...
      q: [B, heads, T, d].
      k: [B, heads, S, d].
      biased: whether there is a bias or a mask.
      mesh: of the program, None for one device.
    """
    if biased or min(q.shape[2], k.shape[2]) < LONG:
        return "xla"
    if platform in ("cuda", "gpu") and q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128:
        return "cudnn"
    if platform == "tpu" and not (q.shape[2] % LANES or k.shape[2] % LANES) and (mesh is None or _divides(mesh, q)):
        return "flash"
    return "xla"


def cudnn(q: Array, k: Array, v: Array) -> Array:
    """By cuDNN's kernel: q [B, heads, T, d], k and v [B, heads, S, d], bfloat16 or float16 -> [B, heads, T, d]."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn").swapaxes(1, 2)


def flash(q: Array, k: Array, v: Array, mesh: Mesh | None = None) -> Array:
    """By the Pallas kernel for TPUs, T and S multiples of 128: q [B, heads, T, d], k and v [B, heads, S, d] -> [B, heads, T, d].

    XLA cannot split a kernel, so over a mesh each device calls it for its own samples and heads.
    """
    if mesh is None:
        return _flash(q, k, v)
    spec = _spec(mesh, q)
    return jax.shard_map(_flash, mesh=mesh, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False)(q, k, v)


def _flash(q: Array, k: Array, v: Array) -> Array:
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, flash_attention

    d = q.shape[-1]
    room = ((0, 0), (0, 0), (0, 0), (0, -d % LANES))                    # zeros change no product
    rows, columns = (next(size for size in (ROWS, 256, LANES) if n % size == 0) for n in (q.shape[2], k.shape[2]))
    blocks = BlockSizes(
        block_q=rows, block_k_major=columns, block_k=columns, block_b=1, block_q_major_dkv=rows, block_k_major_dkv=columns,
        block_k_dkv=columns, block_q_dkv=rows, block_k_major_dq=columns, block_k_dq=columns, block_q_dq=rows,
    )
    padded = (jnp.pad(x, room) for x in (q, k, v))
    return flash_attention(*padded, sm_scale=d**-0.5, block_sizes=blocks)[..., :d].astype(v.dtype)


def _spec(mesh: Mesh, q: Array) -> PartitionSpec:
    """Samples over data and fsdp, heads over tensor where they divide."""
    return PartitionSpec(("data", "fsdp"), "tensor" if q.shape[1] % mesh.shape["tensor"] == 0 else None)


def _divides(mesh: Mesh, q: Array) -> bool:
    manual = any(kind == AxisType.Manual for kind in jax.sharding.get_abstract_mesh().axis_types)
    return not manual and q.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0


def current() -> tuple[str, Mesh | None]:
    """(platform, mesh) of the program that is being traced: those of the mesh in force, or the default platform."""
    mesh = partition.mesh()
    return (mesh.devices.flat[0].platform, mesh if mesh.size > 1 else None) if mesh is not None else (jax.default_backend(), None)
