"""A network of your own, on the digits of the quick start.

    python -m diffusion_jax.main --config own_network.py --workdir runs/own_network --allow own_network
    python -m diffusion_jax.main --mode sample --workdir runs/own_network --label 3 --guidance 2 --allow own_network

Any flax module (x, noise, cond) -> output is one; its fields are the options of `config.model`.
"""
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from diffusion_jax.nn.embed import timestep_embedding
from diffusion_jax.runs.pages import read
from diffusion_jax.types import Array, Cond


class ConvNet(nn.Module):
    """Residual convolutions, each channel of which is scaled and shifted by time and class.

    Attributes:
      width: channels, a multiple of 8.
      depth: residual layers.
    """

    width: int = 64
    depth: int = 4

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond) -> Array:
        """x [B, H, W, C], noise [B], cond['vec'] [B, D] the embedded label -> [B, H, W, C]."""
        time = nn.Dense(self.width)(timestep_embedding(noise, self.width))  # [B, width]
        about = nn.silu(time + nn.Dense(self.width)(cond["vec"]))
        h = nn.Conv(self.width, (3, 3))(x)
        for _ in range(self.depth):
            scale, shift = jnp.split(nn.Dense(2 * self.width)(about)[:, None, None], 2, axis=-1)
            inner = nn.silu(nn.GroupNorm(8)(h) * (1 + scale) + shift)
            h = h + nn.Conv(self.width, (3, 3))(inner)
        # Zeros: at the start it says nothing, which is better than noise.
        return nn.Conv(x.shape[-1], (3, 3), kernel_init=nn.initializers.zeros)(nn.silu(h))


def get_config(arg: str = "") -> ConfigDict:
    """The page of the quick start with this network; `own_network.py:tiny` runs in seconds."""
    config = read(f"digits:{arg}")
    config.model = dict(name="own_network:ConvNet", width=64, depth=4)
    return config
