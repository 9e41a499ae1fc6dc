"""The dense layer y = x W + b, always as one two-dimensional product.

XLA's CPU backend is slow on batched products, forward and above all backward (twice the time for the whole layer); rows cost the
other backends nothing. Parameters are float32, `dtype` is what the product is computed in.
"""
from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Initializer

from diffusion_jax.nn.init import TORCH, BiasInit, zero_bias
from diffusion_jax.types import Array


class Linear(nn.Module):
    """A dense layer over the last axis.

    Attributes:
      features: the width of the output.
      kernel_init: initialiser of the kernel [D_in, features].
      dtype: the type of the product and of the output.
      use_bias: whether there is a bias.
      bias_init: its initialiser by fan_in (nn/init.py); zeros by default.

    Parameters: kernel [D_in, features], bias [features], both float32.
    """

    features: int
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    dtype: str = "float32"
    use_bias: bool = True
    bias_init: BiasInit = zero_bias

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [..., D_in] -> [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        out = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel.astype(self.dtype)  # [N, features]
        if self.use_bias:
            bias = self.param("bias", self.bias_init(x.shape[-1]), (self.features,), jnp.float32)
            out = out + bias.astype(self.dtype)[None]
        return out.reshape(*x.shape[:-1], self.features)


torch_linear = partial(Linear, kernel_init=TORCH.kernel, bias_init=TORCH.bias)
"""`Linear` that starts as PyTorch's does."""
