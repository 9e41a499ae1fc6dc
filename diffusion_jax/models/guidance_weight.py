"""The weight of guidance as a condition: of networks that were distilled from guided ones (2210.03142; 2310.04378).

Such a network predicts in one call what classifier-free guidance of weight w mixes of two,

    F(x, t, cond, w) ~ F(x, t, null) + w (F(x, t, cond) - F(x, t, null))              (1)

and sees w, 1 for none, as sines and cosines of what is above 1:

    g = [sin(a f_0) ... sin(a f_(n-1)), cos(a f_0) ... cos(a f_(n-1))],   a = 1000 (w - 1)     (2)

with n = waves // 2 and f_i = 10000^(-i / (n - 1)), an odd number of waves filled up by 0. The UNet adds W g to the
waves of the noise label (models/unet_blocks.py); a network that adds vectors sees (2) through two layers,

    vec = W_2 silu(W_1 g)                                                             (3)

In training w is drawn; in sampling it is the recipe's guidance, and there is no second prediction.
"""
from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, number
from diffusion_jax.models.cond import optional_keys
from diffusion_jax.models.unet_blocks import waves
from diffusion_jax.nn.linear import torch_linear
from diffusion_jax.types import Array, Cond, Conditioner, Key, Noise, Raw

KEY = "guidance"
"""Of the raw weights, [B], and of what a UNet sees of them."""
UNIT = 1000.0


class GuidanceWeight(nn.Module):
    """(2), or with `width` (3).

    Attributes:
      waves: channels of (2), 256 in published networks.
      width: channels of the network's vec; 0 for a UNet, which has a layer W of its own.
      low, high: of the weights of training, which are uniform between them; 3 and 15 are 2310.04378's 2 and 14,
        where none counts as 0.

    Parameters: fc1 and fc2 with `width`, none without.

    Raises:
      ConfigError: too few waves, or bounds in the wrong order.

    Example:
      Joint((TowerText(tower), GuidanceWeight(256)))
    """

    waves: int = 256
    width: int = 0
    low: float = 3.0
    high: float = 15.0

    keys = derived = droppable = ()
    optional = (KEY,)
    num_classes = 0

    def __post_init__(self):
        super().__post_init__()
        number("waves", self.waves, 4, integer=True)
        if not number("low", self.low) <= number("high", self.high):
            raise ConfigError(f"weights of guidance are drawn from low to high, got {self.low} and {self.high}: "
                              "exchange them")

    @nn.compact
    def __call__(self, raw: Raw) -> Cond:
        """raw['guidance'] [B] -> {'guidance': [B, waves]}, with `width` {'vec': [B, width]}."""
        g = embedded_weight(raw[KEY], self.waves)
        if not self.width:
            return {KEY: g}
        h = nn.silu(torch_linear(self.width, name="fc1")(g))
        return {"vec": torch_linear(self.width, name="fc2")(h)}

    def prepare(
        self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None
    ) -> Raw:
        """`raw` with 'guidance' [B], drawn where it is missing: in training."""
        if KEY in raw:
            return raw
        rows = len(next(iter(raw.values())))
        return {**raw, KEY: jax.random.uniform(key, (rows,), minval=self.low, maxval=self.high)}

    def null(self, raw: Raw) -> Raw:
        """raw itself: nothing is led away from."""
        return raw

    def check(self, raw: Raw) -> None:
        """Refuses weights that are no finite numbers [B].

        Raises:
          ConfigError: says what they are.
        """
        weights = np.asarray(raw.get(KEY, np.ones(1)))
        if weights.ndim != 1 or not np.isfinite(weights).all():
            found = f"{weights.dtype} {weights.shape}"
            raise ConfigError(f"weights of guidance are finite numbers [B], not {found}")


def embedded_weight(weight: Array, channels: int) -> Array:
    """(2) of weights [B] -> [B, channels] float32."""
    # Subtracted first: of 1000 w float32 would keep fewer digits.
    return waves(UNIT * (jnp.asarray(weight, jnp.float32) - 1), channels, ddpm=True)


def reads_weight(cond: Conditioner | nn.Module) -> bool:
    """Whether a conditioner, or a part of it, tells the network the weight of guidance."""
    return KEY in optional_keys(cond)
