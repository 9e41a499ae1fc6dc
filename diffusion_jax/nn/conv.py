"""The two-dimensional convolution of the UNets, NHWC, with explicit padding.

    y[b, r, c] = sum_ij x[b, r s + i - p, c s + j - p] K[i, j] + bias                 (1)      s the stride, p the padding
    dK[i, j]   = sum_brc x[b, r + i - p, c + j - p]^T dy[b, r, c]                     (2)      s = 1

PyTorch pads a strided convolution on both sides, XLA's "SAME" at the far side only: published weights depend on it.

XLA's CPU backend computes (2) as a convolution with a kernel as large as the image, which takes 1.4 to 3 times as long as the
matrix products that (2) really is, over as many samples at a time as the cache holds. The other backends keep XLA's own.
"""
from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer

from diffusion_jax.types import Array

CACHE = 2**20  # bytes of x and dy that (2) takes at a time: about the second-level cache of a core


class Conv(nn.Module):
    """A convolution.

    Attributes:
      features: channels of the output.
      size: side of the kernel.
      stride: in both directions.
      padding: zeros before and after, in both directions.
      kernel_init: initialiser of the kernel; the bias starts at zero.
      dtype: the type of the product and of the output.
      use_bias: whether there is a bias.

    Parameters: kernel [size, size, C, features], bias [features], both float32.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: tuple[int, int] = (1, 1)
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    dtype: str = "float32"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, H', W', features]."""
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features), jnp.float32)
        product = partial(_strided, self.stride) if self.stride > 1 else convolve
        out = product(self.padding, x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return out
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return out + bias.astype(self.dtype)[None, None, None]


def _strided(stride: int, padding: tuple[int, int], x: Array, kernel: Array) -> Array:
    """(1) without its bias."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), (padding, padding), dimension_numbers=numbers)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def convolve(padding: tuple[int, int], x: Array, kernel: Array) -> Array:
    """(1) for s = 1 without its bias: x [B, H, W, C], kernel [size, size, C, F] -> [B, H', W', F]."""
    return _strided(1, padding, x, kernel)


def _forward(padding: tuple[int, int], x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _strided(1, padding, x, kernel), (x, kernel)


def _backward(padding: tuple[int, int], saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: _strided(1, padding, x, kernel), x)(dy)

    def own(x: Array, dy: Array) -> Array:
        return jax.linear_transpose(lambda kernel: _strided(1, padding, x, kernel), kernel)(dy)[0].astype(jnp.float32)

    products = partial(_kernel_gradient, padding, kernel.shape[0])
    return dx, jax.lax.platform_dependent(x, dy, cpu=products, default=own).astype(kernel.dtype)


convolve.defvjp(_forward, _backward)


def _kernel_gradient(padding: tuple[int, int], size: int, x: Array, dy: Array) -> Array:
    """(2): x [B, H, W, C], dy [B, H', W', F] -> [size, size, C, F] float32."""
    b, h, w, features = dy.shape
    channels = x.shape[-1]

    def products(x: Array, dy: Array) -> Array:
        # Channels first, once for all products: each is then rows times columns, the order that matrix products like best.
        x = jnp.pad(x.transpose(3, 0, 1, 2), ((0, 0), (0, 0), padding, padding))
        parts = [x[:, :, i : i + h, j : j + w].reshape(channels, -1) for i in range(size) for j in range(size)]  # [C, N] each
        rows = dy.reshape(-1, features)  # [N, F]
        return jnp.stack([jnp.matmul(part, rows, preferred_element_type=jnp.float32) for part in parts])

    held = max(d for d in range(1, b + 1) if b % d == 0 and (d == 1 or d * (x.nbytes + dy.nbytes) <= b * CACHE))
    pairs = tuple(a.reshape(b // held, held, *a.shape[1:]) for a in (x, dy))
    zero = jnp.zeros((size * size, channels, features), jnp.float32)
    total, _ = jax.lax.scan(lambda total, pair: (total + products(*pair), None), zero, pairs)
    return total.reshape(size, size, channels, features)
