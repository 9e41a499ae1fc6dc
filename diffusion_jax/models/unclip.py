"""What the parts of unCLIP are conditioned on (Ramesh et al. 2022, arXiv 2204.06125): a CLIP embedding and a text.

With y the embedding of an image, c that of the text and s the states of its tokens, the decoder (sec. 2.1) sees

    vec  = W1 y + W2 c                    added to the embedding of the noise         (1)
    seq  = [W3 y cut into tokens, norm(W4 s)]       keys and values of every attention block       (2)

and the prior (sec. 2.2) c and s themselves (3). The decoder is the UNet of models/unet.py, the prior that of models/prior.py or
of models/prior_ar.py.

raw['with_image'] and raw['with_text'] [B] are 0 where a condition is dropped: an embedding of an image becomes a learned one, a
text the empty text, which raw holds as well: clip_empty, empty_states and empty_mask. The null condition has neither.
"""
from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.process import bcast
from diffusion_jax.nn.linear import torch_linear
from diffusion_jax.nn.norm import LayerNorm
from diffusion_jax.types import Array, Cond, Key, Noise, Raw

TEXT = ("clip_text", "text_states", "text_mask")
EMPTY = ("clip_empty", "empty_states", "empty_mask")
"""A text as a CLIP has it: its embedding, the states of its tokens, which of them are real; and the same of the empty text."""


def text_of(raw: Raw) -> tuple[Array, Array, Array]:
    """clip_text [B, F], text_states [B, L, D] and text_mask [B, L], those of the empty text where raw['with_text'] is 0."""
    if "with_text" not in raw:
        return raw[TEXT[0]], raw[TEXT[1]], raw[TEXT[2]].astype(bool)
    found = [jnp.where(bcast(raw["with_text"] > 0, raw[own]), raw[own], raw[null]) for own, null in zip(TEXT, EMPTY, strict=True)]
    return found[0], found[1], found[2].astype(bool)


def with_all(raw: Raw, *names: str) -> Raw:
    """`raw` with each of `names`, 1 where it is missing; raw itself where it holds no text."""
    return {**{name: jnp.ones(len(raw[TEXT[0]])) for name in names if TEXT[0] in raw}, **raw}


def without(raw: Raw, *names: str) -> Raw:
    """`raw` with each of `names` 0."""
    return {**raw, **{name: jnp.zeros(len(raw[TEXT[0]])) for name in names}}


def check_embeddings(raw: Raw, names: tuple[str, ...], features: int) -> None:
    """Raises ConfigError where embeddings have another size than `features`."""
    for name in names:
        shape = np.shape(raw[name])
        if len(shape) != 2 or shape[1] != features:
            raise ConfigError(f"{name} is [B, {features}], not {shape}: use the CLIP that this model was trained with")


class ImageText(nn.Module):
    """The decoder's conditioner (1), (2).

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

    keys = ("clip_image", *TEXT, *EMPTY)
    derived = ()
    droppable = ("with_image", "with_text")
    num_classes = 0

    @nn.compact
    def __call__(self, raw: Raw) -> Cond:
        """The embedded condition.

        Args:
          raw: clip_image and clip_text [B, features], text_states [B, L, D], text_mask [B, L] True for real tokens, perhaps
            with_image [B], 0 where there is no embedding of an image, and perhaps with_text.

        Returns:
          vec [B, out], seq [B, tokens + L, width], seq_mask [B, tokens + L].
        """
        null = self.param("null", nn.initializers.normal(0.02), (self.features,), jnp.float32)
        y = raw["clip_image"]
        if "with_image" in raw:
            y = jnp.where(raw["with_image"][:, None] > 0, y, null[None])
        embedding, states, real = text_of(raw)
        vec = torch_linear(self.out, name="image_vec")(y) + torch_linear(self.out, name="text_vec")(embedding)
        own = torch_linear(self.width * self.tokens, name="image_seq")(y).reshape(len(y), self.width, self.tokens).swapaxes(1, 2)
        text = LayerNorm(1e-5, name="text_norm")(torch_linear(self.width, name="text_seq")(states))
        mask = jnp.pad(real, ((0, 0), (self.tokens, 0)), constant_values=True)
        return {"vec": vec, "seq": jnp.concatenate([own, text], axis=1), "seq_mask": mask}

    def prepare(self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None) -> Raw:
        """`raw` with with_image and, where it holds the empty text, with_text, 1 where they are missing."""
        return with_all(raw, "with_image", *(("with_text",) if EMPTY[0] in raw else ()))

    def null(self, raw: Raw) -> Raw:
        """The batch without embeddings of images and, where it holds the empty text, without texts."""
        return without(raw, "with_image", *(("with_text",) if EMPTY[0] in raw else ()))

    def check(self, raw: Raw) -> None:
        """Refuses embeddings of another size.

        Raises:
          ConfigError: says what they are.
        """
        check_embeddings(raw, ("clip_image", "clip_text"), self.features)


class Text(nn.Module):
    """The prior's conditioner (3). Has no parameters.

    Attributes:
      features: channels of CLIP's embeddings.
    """

    features: int

    keys = (*TEXT, *EMPTY)
    derived = ()
    droppable = ("with_text",)
    num_classes = 0

    def __call__(self, raw: Raw) -> Cond:
        """vec [B, features], seq [B, L, D], seq_mask [B, L]."""
        return dict(zip(("vec", "seq", "seq_mask"), text_of(raw), strict=True))

    def prepare(self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None) -> Raw:
        """`raw` with with_text, 1 where it is missing."""
        return with_all(raw, "with_text")

    def null(self, raw: Raw) -> Raw:
        """The batch without texts."""
        return without(raw, "with_text")

    def check(self, raw: Raw) -> None:
        """Refuses embeddings of another size.

        Raises:
          ConfigError: says what they are.
        """
        check_embeddings(raw, ("clip_text",), self.features)


class Relay(nn.Module):
    """Two networks of one shape, one for the noisy steps and another for the last: Karlo's super-resolution.

    Attributes:
      first: the network of noise labels above `until`.
      last: that of the others.
      until: see above.

    Parameters: first, last.
    """

    first: nn.Module
    last: nn.Module
    until: float = 0.0

    @property
    def mults(self) -> tuple[float, ...]:
        """Those of both."""
        return self.first.mults

    def __call__(self, x: Array, noise: Array, cond: Cond) -> Array:
        """The output [B, H, W, C] for x [B, H, W, C], noise [B] and cond; a batch at one noise label runs one network only."""
        def both(self: Relay, x: Array, noise: Array, cond: Cond) -> Array:
            return jnp.where(bcast(noise <= self.until, x), self.last(x, noise, cond), self.first(x, noise, cond))

        if self.is_initializing():
            return both(self, x, noise, cond)
        late = noise <= self.until
        which = jnp.where(jnp.all(late), 1, jnp.where(jnp.any(late), 2, 0))
        return nn.switch(which, (lambda self, *a: self.first(*a), lambda self, *a: self.last(*a), both), self, x, noise, cond)
