"""What unCLIP's decoder is conditioned on (Ramesh et al. 2022, arXiv 2204.06125, sec. 2.1): a CLIP embedding and a text.

With y the embedding of an image, c that of the text and s the states of its tokens,

    vec  = W1 y + W2 c                    added to the embedding of the noise         (1)
    seq  = [W3 y cut into tokens, norm(W4 s)]       keys and values of every attention block       (2)

The decoder itself is the UNet of models/unet.py. An embedding that is not given, raw['with_image'] = 0, is replaced by a learned
one; the null condition has neither image nor text.
"""
from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.nn.linear import Linear
from diffusion_jax.nn.norm import LayerNorm
from diffusion_jax.types import Array, Cond, Key, Noise, Raw


class ImageText(nn.Module):
    """The conditioner (1), (2).

    Attributes:
      features: channels of CLIP's embeddings.
      out: channels of vec, those of the network's embedding.
      width: channels of a token of seq.
      tokens: how many of them an image makes.

    Parameters: null [features], image_vec, text_vec, image_seq, text_seq, text_norm.
    """

    features: int
    out: int
    width: int
    tokens: int = 4

    keys = ("clip_image", "clip_text", "text_states", "text_mask")
    derived = ()
    droppable = ("with_image",)
    num_classes = 0

    @nn.compact
    def __call__(self, raw: Raw) -> Cond:
        """The embedded condition.

        Args:
          raw: clip_image and clip_text [B, features], text_states [B, L, D], text_mask [B, L] True for real tokens, and perhaps
            with_image [B], 0 where there is no embedding of an image.

        Returns:
          vec [B, out], seq [B, tokens + L, width], seq_mask [B, tokens + L].
        """
        null = self.param("null", nn.initializers.normal(0.02), (self.features,), jnp.float32)
        y = raw["clip_image"]
        if "with_image" in raw:
            y = jnp.where(raw["with_image"][:, None] > 0, y, null[None])
        vec = Linear(self.out, name="image_vec")(y) + Linear(self.out, name="text_vec")(raw["clip_text"])
        own = Linear(self.width * self.tokens, name="image_seq")(y).reshape(len(y), self.width, self.tokens).swapaxes(1, 2)
        text = LayerNorm(1e-5, name="text_norm")(Linear(self.width, name="text_seq")(raw["text_states"]))
        mask = jnp.pad(raw["text_mask"].astype(bool), ((0, 0), (self.tokens, 0)), constant_values=True)
        return {"vec": vec, "seq": jnp.concatenate([own, text], axis=1), "seq_mask": mask}

    def prepare(self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None) -> Raw:
        """`raw` with with_image, 1 where it is missing."""
        given: Array = raw["with_image"] if "with_image" in raw else jnp.ones(len(raw["clip_image"]))
        return {**raw, "with_image": given}

    def null(self, raw: Raw) -> Raw:
        """The batch without embeddings of images."""
        return {**raw, "with_image": jnp.zeros(len(raw["clip_image"]))}

    def check(self, raw: Raw) -> None:
        """Refuses embeddings of another size.

        Raises:
          ConfigError: says what they are.
        """
        for name in ("clip_image", "clip_text"):
            shape = np.shape(raw[name])
            if len(shape) != 2 or shape[1] != self.features:
                raise ConfigError(f"{name} is [B, {self.features}], not {shape}: use the CLIP that this model was trained with")
