"""A CLIP's embedding of a picture as a condition: control by text of a model that has never seen a text.

CLIP (2103.00020) puts pictures and texts into one space. So a model that is trained under the embeddings y of its own images is
sampled under those of texts. The two lie apart even where they belong together, and noise on y in training covers that gap
(Zhou et al. 2022, "LAFITE", arXiv 2111.13792):

    y'  = |y| unit(unit(y) + noise u),    u uniform on the sphere                     (1)   in training only
    vec = W2 silu(W1 y')                                                              (2)

The null condition is y = 0, which is no direction. y is that of tasks/embedder.py, as unCLIP's decoder has it (models/unclip.py).
"""
from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.models.unclip import check_embeddings
from diffusion_jax.nn.linear import torch_linear
from diffusion_jax.types import Array, Cond, Key, Noise, Raw


class Features(nn.Module):
    """The conditioner (1), (2).

    Attributes:
      features: F, channels of the CLIP's embeddings.
      width: channels of vec, those of the network's embedding.
      noise: that of (1); 0 for none.

    Parameters: fc1, fc2.
    """

    features: int
    width: int
    noise: float = 0.75

    keys = droppable = ("clip_image",)
    derived = ()
    num_classes = 0

    @nn.compact
    def __call__(self, raw: Raw) -> Cond:
        """raw['clip_image'] [B, F] -> vec [B, width]."""
        h = nn.silu(torch_linear(self.width, name="fc1")(raw["clip_image"]))
        return {"vec": torch_linear(self.width, name="fc2")(h)}

    def prepare(self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None) -> Raw:
        """`raw` with (1) where no level is given, as in training; at any given level, or without embeddings, `raw` itself."""
        if level is not None or not self.noise or "clip_image" not in raw:
            return raw
        y = raw["clip_image"]
        turned = _unit(_unit(y) + self.noise * _unit(noise(key, y.shape)))
        return {**raw, "clip_image": turned * jnp.linalg.norm(y, axis=-1, keepdims=True)}

    def null(self, raw: Raw) -> Raw:
        """The batch with embeddings 0."""
        return {**raw, "clip_image": jnp.zeros_like(raw["clip_image"])}

    def check(self, raw: Raw) -> None:
        """Refuses embeddings of another size.

        Raises:
          ConfigError: says what they are.
        """
        check_embeddings(raw, ("clip_image",), self.features)


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
