"""The diffusion prior of unCLIP (Ramesh et al. 2022, arXiv 2204.06125, sec. 2.2): from a text to the CLIP embedding of an image.

A causal transformer sees, at every step of the diffusion, the row

    [W1 states of the text ..., W2 embedding of the text, MLP(sincos(t)), W3 x_t, query] + position       (1)

and x0, not the noise, is read at the last place:

    F = W norm(transformer(row))_last                                                                    (2)

x is an embedding of CLIP, brought to zero mean and unit variance in every channel. Tokens beyond the text are masked.
"""
from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.models.transformer import Transformer
from diffusion_jax.nn.embed import timestep_embedding
from diffusion_jax.nn.linear import torch_linear
from diffusion_jax.nn.norm import LayerNorm
from diffusion_jax.types import Array, Cond

CONDITIONS = ("vec", "seq", "seq_mask")
OTHERS = 4
"""Places of the row beside the text: its embedding, the noise label, x_t and the query."""


class Prior(nn.Module):
    """The network.

    Attributes:
      features: channels of the embedding.
      context: tokens of a text.
      width, layers, heads: of the transformer.
      norm: whether there is the norm of (2).
      dtype: of the transformer's products.

    Parameters: text_seq, text_vec, time1, time2, x, query, position, transformer, norm, out.

    Example:
      model = Prior(**preset('karlo'))
      model.apply({'params': params}, x, noise, {'vec': vec, 'seq': seq, 'seq_mask': mask})    # [B, 768]
    """

    features: int
    context: int = 77
    width: int = 2048
    layers: int = 20
    heads: int = 32
    norm: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond) -> Array:
        """x0.

        Args:
          x: x_t [B, features].
          noise: the DDPM step, [B].
          cond: vec [B, D], the embedding of the text; seq [B, context, W], the states of its tokens, real where seq_mask
            [B, context] is True.

        Returns:
          [B, features] float32.

        Raises:
          ConfigError: a condition that this network does not know, or a text of another length.
        """
        for key in cond:
            if key not in CONDITIONS:
                raise unknown("condition of Prior", key, CONDITIONS)
        if cond["seq"].shape[1] != self.context:
            raise ConfigError(f"this prior sees texts of {self.context} tokens, not {cond['seq'].shape[1]}: set its context")
        init = nn.initializers.normal(0.01)
        query = self.param("query", init, (self.width,), jnp.float32)
        position = self.param("position", init, (self.context + OTHERS, self.width), jnp.float32)
        time = nn.silu(torch_linear(self.width, name="time1")(timestep_embedding(noise, self.width)))
        row = [
            torch_linear(self.width, name="text_vec")(cond["vec"]), torch_linear(self.width, name="time2")(time),
            torch_linear(self.width, name="x")(x), jnp.broadcast_to(query[None], (len(x), self.width)),
        ]
        text = torch_linear(self.width, name="text_seq")(cond["seq"])
        h = jnp.concatenate([text, jnp.stack(row, axis=1)], axis=1) + position[None]
        mask = None
        if "seq_mask" in cond:
            mask = jnp.pad(cond["seq_mask"].astype(bool), ((0, 0), (0, OTHERS)), constant_values=True)
        h = Transformer(self.layers, self.heads, is_causal=True, dtype=self.dtype, name="transformer")(h, mask)[-1][:, -1:]
        h = LayerNorm(1e-5, name="norm")(h) if self.norm else h
        return torch_linear(self.features, name="out")(h.astype(jnp.float32))[:, 0]


PRESETS = {
    "karlo": {"features": 768, "context": 77, "width": 2048, "layers": 20, "heads": 32},                  # 1.0 B parameters
}


def preset(name: str) -> dict[str, Any]:
    """The options of a published prior.

    Raises:
      ConfigError: no such network; names the nearest.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return dict(PRESETS[name])
