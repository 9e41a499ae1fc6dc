"""The two-dimensional convolution of the UNets, NHWC, with explicit padding.

    y[b, r, c] = sum_ij x[b, r s + i - p, c s + j - p] K[i, j] + bias                 (1)      s the stride, p the padding
    y          = sum_ij shift(x)_ij K[i, j],   shift(x)_ij = x[b, r + i - p, c + j - p]      (2)      s = 1
    dK[i, j]   = sum_brc shift(x)_ij^T dy[b, r, c]                                    (3)      s = 1

PyTorch pads a strided convolution on both sides, XLA's "SAME" at the far side only: published weights depend on it.

XLA's CPU backend has three weaknesses, which are mended here. JAX derives the gradients by transposing the map from a change of x
or of K to a change of y, so writing that map in another form is enough, and every kind of derivative works.

  - Inside of loops (scans over steps, layers, microbatches) it is fast only where the axes of a convolution stand as in NHWC and
    HWIO, and JAX's gradients exchange them: that in x takes 3 times as long there, that in K 50 times. So the maps are written
    with the axes exchanged in advance, and the gradients have them in place.
  - It computes (3) as a convolution with a kernel as large as the image. For many channels and pixels that takes up to three
    times as long as the matrix products that (3) is, of as many samples at a time as the cache holds: there the map is (2).
  - A kernel larger than the image it runs in plain loops: 512 channels of 2x2 pixels take 80 times as long as the product of all
    windows. That is taken everywhere, as a kernel of 1 is a matrix product everywhere.
"""
from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.custom_derivatives import SymbolicZero

from diffusion_jax.nn.init import TORCH, BiasInit, zero_bias
from diffusion_jax.types import Array

CACHE = 2**20  # bytes of x and y that (2) takes at a time: about the second-level cache of a core
MANY_PIXELS, MANY_CHANNELS = 32 * 32, 320  # from which on CPUs are faster by (2)


class Conv(nn.Module):
    """A convolution.

    Attributes:
      features: channels of the output.
      size: side of the kernel.
      stride: in both directions.
      padding: zeros before and after, in both directions.
      kernel_init: initialiser of the kernel.
      dtype: the type of the product and of the output.
      use_bias: whether there is a bias.
      bias_init: its initialiser by fan_in (nn/init.py); zeros by default.

    Parameters: kernel [size, size, C, features], bias [features], both float32.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: tuple[int, int] = (1, 1)
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    dtype: str = "float32"
    use_bias: bool = True
    bias_init: BiasInit = zero_bias

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, H', W', features]."""
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features), jnp.float32)
        out = convolve(self.padding, x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        if not self.use_bias:
            return out
        bias = self.param("bias", self.bias_init(self.size**2 * x.shape[-1]), (self.features,), jnp.float32)
        return out + bias.astype(self.dtype)[None, None, None]


torch_conv = partial(Conv, kernel_init=TORCH.kernel, bias_init=TORCH.bias)
"""`Conv` that starts as PyTorch's does."""


def convolve(padding: tuple[int, int], x: Array, kernel: Array, stride: int = 1) -> Array:
    """(1) without its bias: x [B, H, W, C], kernel [size, size, C, F] -> [B, H', W', F]."""
    if min(x.shape[1:3]) < len(kernel):
        return of_windows(stride, padding, x, kernel)
    if kernel.shape[:2] == (1, 1) and padding == (0, 0) and stride == 1:
        return jnp.einsum("bhwc,cf->bhwf", x, kernel[0, 0])
    return _convolved(stride, padding, x, kernel)


def of_windows(stride: int, padding: tuple[int, int], x: Array, kernel: Array) -> Array:
    """The same as one product: of all windows, [B, H', W', size size C], and the kernel. Takes size^2 times the memory of x."""
    size, _, channels, features = kernel.shape
    x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    height, width = (side - size + 1 for side in x.shape[1:3])
    taps = [x[:, i : i + height : stride, j : j + width : stride] for i in range(size) for j in range(size)]
    windows = jnp.concatenate(taps, axis=-1)
    return windows @ kernel.reshape(size * size * channels, features)


def _by_xla(
    stride: int,
    padding: tuple[int, int],
    x: Array,
    kernel: Array,
    axes: tuple[str, str, str] = ("NHWC", "HWIO", "NHWC"),
) -> Array:
    """(1); the axes of x, of the kernel and of y are in the order of `axes`."""
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), (padding, padding), dimension_numbers=axes)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _convolved(stride: int, padding: tuple[int, int], x: Array, kernel: Array) -> Array:
    """The same as XLA's convolution, whose gradients are written for CPUs too."""
    return _by_xla(stride, padding, x, kernel)


@partial(_convolved.defjvp, symbolic_zeros=True)
def _tangent(
    stride: int, padding: tuple[int, int], primals: tuple[Array, Array], tangents: tuple[Any, Any]
) -> tuple[Array, Array]:
    """(1) and its change: it is linear in x and in the kernel. One that does not change comes as a symbolic zero."""
    x, kernel = primals
    dx, dkernel = tangents
    # XLA's own, so that what keeps convolutions for the way back knows it for one.
    y = _by_xla(stride, padding, x, kernel)
    plain = partial(_by_xla, stride, padding)
    changes = []
    if not isinstance(dx, SymbolicZero):
        changes.append(jax.lax.platform_dependent(dx, kernel, cpu=partial(_along_x, stride, padding), default=plain))
    if not isinstance(dkernel, SymbolicZero):
        many = x.shape[1] * x.shape[2] >= MANY_PIXELS and min(kernel.shape[2:]) >= MANY_CHANNELS
        on_cpu = partial(_by_taps, padding) if many and stride == 1 else partial(_along_kernel, stride, padding)
        changes.append(jax.lax.platform_dependent(x, dkernel, cpu=on_cpu, default=plain))
    return y, sum(changes, jnp.zeros_like(y))


def _along_x(stride: int, padding: tuple[int, int], dx: Array, kernel: Array) -> Array:
    """(1), whose transpose in x has its axes in place."""
    return _by_xla(stride, padding, dx, kernel.swapaxes(2, 3), ("NHWC", "HWOI", "NHWC"))


def _along_kernel(stride: int, padding: tuple[int, int], x: Array, dkernel: Array) -> Array:
    """(1), whose transpose in the kernel has its axes in place."""
    y = _by_xla(stride, padding, x.transpose(3, 1, 2, 0), dkernel.transpose(2, 0, 1, 3), ("CHWN", "IHWO", "HWNC"))
    return y.transpose(2, 0, 1, 3)


def _by_taps(padding: tuple[int, int], x: Array, kernel: Array) -> Array:
    """(2): x [B, H, W, C], kernel [size, size, C, F] -> [B, H', W', F]."""
    b, h, w, channels = x.shape
    size, _, _, features = kernel.shape
    height, width = (side + sum(padding) - size + 1 for side in (h, w))
    bytes_of_both = x.nbytes + b * height * width * features * x.dtype.itemsize
    held = max(d for d in range(1, b + 1) if b % d == 0 and (d == 1 or d * bytes_of_both <= b * CACHE))

    # Recomputed, not kept for the transpose: the shifted copies are size^2 times as large as x.
    @partial(jax.checkpoint, prevent_cse=False)
    def products(x: Array, kernel: Array) -> Array:
        # Channels first, once for all products: (3) is then rows times columns, the order that matrix products like best.
        # In float32, in which sums belong: the CPU has no products of bfloat16 with such sums in every order.
        x = jnp.pad(x.transpose(3, 0, 1, 2).astype(jnp.float32), ((0, 0), (0, 0), padding, padding))
        shifted = [x[:, :, i : i + height, j : j + width].reshape(channels, -1) for i in range(size) for j in range(size)]
        taps = kernel.reshape(size * size, channels, features).astype(jnp.float32)
        y = sum(jnp.einsum("cn,cf->nf", x, tap) for x, tap in zip(shifted, taps, strict=True))
        return y.astype(kernel.dtype).reshape(held, height, width, features)

    parts = x.reshape(b // held, held, h, w, channels)
    _, y = jax.lax.scan(lambda _, part: (None, products(part, kernel)), None, parts)
    return y.reshape(b, height, width, features)
