"""Conditioners: from what a batch holds (Raw) to what a network sees (Cond).

A conditioner is embedded once per image, the network runs once per step. The null condition of classifier-free guidance is the
embedding of a null raw condition, whatever that is for the model at hand: here one more row of the label table. So every
conditioner has

    __call__(raw) -> Cond        the embedding, with parameters
    null(raw) -> Raw             the same batch with its condition taken away
    check(raw)                   on the host: refuses a raw condition that a jitted program would accept silently
    keys                         the raw keys that it reads, each of which may be dropped at its own rate
"""
from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.types import Cond, Raw


class Label(nn.Module):
    """A class label, embedded by a table (DiT's LabelEmbedder, arXiv 2212.09748).

    Attributes:
      num_classes: labels are 0 ... num_classes - 1.
      width: channels of the embedding; that of the network.
      null_row: one more row, label num_classes, stands for "no label"; guidance and label dropout need it.

    Parameters: table [num_classes + null_row, width].
    """

    num_classes: int
    width: int
    null_row: bool = True

    keys = ("label",)

    @nn.compact
    def __call__(self, raw: Raw) -> Cond:
        """raw['label'] [B] int -> {'vec': [B, width]}; NaN for a label beyond the table."""
        rows = self.num_classes + int(self.null_row)
        table = self.param("table", nn.initializers.normal(0.02), (rows, self.width), jnp.float32)
        return {"vec": jnp.take(table, raw["label"], axis=0, mode="fill", fill_value=jnp.nan)}

    def null(self, raw: Raw) -> Raw:
        """The batch with every label replaced by the null label.

        Raises:
          ConfigError: the table has no null row.
        """
        if not self.null_row:
            raise ConfigError("this label table has no null row, so there is no guidance and no label dropout: set null_row=True")
        return {**raw, "label": jnp.full_like(raw["label"], self.num_classes)}

    def check(self, raw: Raw) -> None:
        """Refuses labels outside [0, num_classes).

        Raises:
          ConfigError: names the first such label.
        """
        label = np.asarray(raw["label"])
        outside = label[(label < 0) | (label >= self.num_classes)]
        if outside.size:
            raise ConfigError(f"label {outside[0]} is outside 0 ... {self.num_classes - 1}")


class Nothing(nn.Module):
    """No condition: an unconditional network. Has no parameters."""

    keys = ()

    def __call__(self, raw: Raw) -> Cond:
        """The empty condition."""
        return {}

    def null(self, raw: Raw) -> Raw:
        """raw itself: there is nothing to take away."""
        return raw

    def check(self, raw: Raw) -> None:
        """Accepts everything."""
