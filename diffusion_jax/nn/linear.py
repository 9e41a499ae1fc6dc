"""The dense layer y = x W + b, always as one two-dimensional product.

XLA's CPU backend is slow on batched products, forward and above all backward (twice the time for the whole layer); rows cost the
other backends nothing. Parameters are float32, `dtype` is what the product is computed in.
"""
from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Initializer

from diffusion_jax.types import Array


class Linear(nn.Module):
    """A dense layer over the last axis.

    Attributes:
      features: the width of the output.
      kernel_init: initialiser of the kernel [D_in, features]; the bias starts at zero.
      dtype: the type of the product and of the output.
      use_bias: whether there is a bias.

    Parameters: kernel [D_in, features], bias [features], both float32.
    """

    features: int
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    dtype: str = "float32"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [..., D_in] -> [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        out = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel.astype(self.dtype)  # [N, features]
        if self.use_bias:
            out = out + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)[None]
        return out.reshape(*x.shape[:-1], self.features)
