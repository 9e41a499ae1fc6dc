"""The conditioner of Stable Diffusion XL (Podell et al. 2307.01952, sections 2.1, 2.2): a text through two encoders, and sizes.

With l and g the states of two CLIPs before their last layer, without their final norm,

    seq = [ l, g ]   along the channels; the refiner has g alone                      (1)
    vec = MLP([ pooled(g), sincos(s_1), sincos(s_2) ... ])                            (2)

where pooled is CLIP's own embedding of a text, projected, and s are the sizes that the network was told in training:

    height and width of the picture before it was resized | top and left of the crop | height and width of what was asked for

of which the refiner has a score of beauty in place of the last two. `sizes` are those of a whole, large picture.

A text is one row of tokens, [those of l | of g]. Where nothing is said, seq and pooled are zeros: that is XL's null, and the
tokens of it are -1. An empty text is a text, which is encoded.
"""
from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.models.clip import TextTower
from diffusion_jax.nn.embed import timestep_embedding
from diffusion_jax.nn.linear import torch_linear
from diffusion_jax.types import Array, Cond, Key, Noise, Raw

ABSENT = -1
"""The token of no text."""


class XLText(nn.Module):
    """(1) and (2), once per image.

    Attributes:
      clip_g: the larger tower.
      clip_l: the smaller one; None for the refiner.
      width: channels of vec, those of the network's embedding of the noise: four times its own.
      waves: channels of the sines and cosines of a size.
      sizes: those of an image that has none, raw['sizes'] [B, n].
      negative_sizes: those that guidance leads away from; () for the image's own.
      zeros: whether the null is zeros; or else the empty text, as for the refiner.
      context: tokens of each CLIP.
      clip_skip: layers left out beside the last one.
      frozen: whether training leaves the towers as they are, see models/text_cond.py:TowerText.

    Parameters: clip_l, clip_g, fc1, fc2.

    Raises:
      ConfigError: two kinds of sizes, of which one is longer than the other, or more layers left out than there are.
    """

    clip_g: TextTower
    clip_l: TextTower | None = None
    width: int = 1280
    waves: int = 256
    sizes: tuple[float, ...] = (1024, 1024, 0, 0, 1024, 1024)
    negative_sizes: tuple[float, ...] = ()
    zeros: bool = True
    context: int = 77
    clip_skip: int = 0
    frozen: bool = True

    keys = droppable = ("tokens",)
    derived = ()
    num_classes = 0

    def __post_init__(self):
        super().__post_init__()
        if self.negative_sizes and len(self.negative_sizes) != len(self.sizes):
            raise ConfigError(f"sizes are {len(self.sizes)} numbers, negative_sizes {len(self.negative_sizes)}: give as many")

        least = min(tower.layers for tower in (self.clip_g, self.clip_l) if tower is not None)
        if not 0 <= self.clip_skip < least:
            raise ConfigError(f"clip_skip leaves out 0 ... {least - 1} of the {least} layers of a CLIP, got {self.clip_skip}")

    @property
    def length(self) -> int:
        """Tokens of a text, of all towers."""
        return self.context * (1 if self.clip_l is None else 2)

    def __call__(self, raw: Raw) -> Cond:
        """raw['tokens'] [B, length] int, and raw['sizes'] [B, n] where it is there -> seq [B, context, D] and vec [B, width]."""
        seq, pooled = self.texts(raw["tokens"])
        sizes = raw["sizes"] if "sizes" in raw else self._whole(self.sizes, pooled)
        return {"seq": seq, "vec": self.vec(pooled, sizes)}

    @nn.compact
    def vec(self, pooled: Array, sizes: Array) -> Array:
        """(2): pooled [B, F], sizes [B, n] -> [B, width]."""
        h = jnp.concatenate([pooled, self.embedded(sizes)], axis=-1)
        h = nn.silu(torch_linear(self.width, name="fc1")(h))
        return torch_linear(self.width, name="fc2")(h)

    def texts(self, tokens: Array) -> tuple[Array, Array]:
        """(1) and pooled of the towers: tokens [B, length] -> seq [B, context, D], pooled [B, F]."""
        absent = tokens[:, :1] == ABSENT                                             # [B, 1]
        rows = jnp.split(jnp.maximum(tokens, 0), self.length // self.context, axis=1)
        large = self.clip_g(rows[-1])
        last = -2 - self.clip_skip
        states = large.states[last]
        if self.clip_l is not None:
            states = jnp.concatenate([self.clip_l(rows[0]).states[last], states], axis=-1)
        seq = jnp.where(absent[..., None], 0, states.astype(jnp.float32))
        pooled = jnp.where(absent, 0, large.features.astype(jnp.float32))
        return (jax.lax.stop_gradient(seq), jax.lax.stop_gradient(pooled)) if self.frozen else (seq, pooled)

    def embedded(self, sizes: Array) -> Array:
        """The sines and cosines of sizes [B, n] -> [B, n * waves]."""
        return timestep_embedding(sizes.reshape(-1), self.waves).reshape(len(sizes), -1)

    def _whole(self, sizes: tuple[float, ...], like: Array) -> Array:
        """The same sizes for every row of an array, [B, n]."""
        return jnp.broadcast_to(jnp.asarray(sizes, jnp.float32)[None], (len(like), len(sizes)))

    def prepare(self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None) -> Raw:
        """raw itself."""
        return raw

    def null(self, raw: Raw) -> Raw:
        """The batch without texts, or with empty ones."""
        raw = {**raw, "tokens": jnp.broadcast_to(self.empty()[None], raw["tokens"].shape)}
        return {**raw, "sizes": self._whole(self.negative_sizes, raw["tokens"])} if self.negative_sizes else raw

    def empty(self) -> np.ndarray:
        """The tokens of no text, int32 [length]: of none, or of the empty one."""
        if self.zeros:
            return np.full(self.length, ABSENT, np.int32)
        start, end = self.clip_g.vocab - 2, self.clip_g.vocab - 1
        small, large = np.full(self.context, end, np.int32), np.zeros(self.context, np.int32)
        small[0] = large[0] = start
        large[1] = end
        return large if self.clip_l is None else np.concatenate([small, large])

    def check(self, raw: Raw) -> None:
        """Refuses what is no batch of such tokens.

        Raises:
          ConfigError: says what it is.
        """
        tokens: Array = np.asarray(raw["tokens"])
        if tokens.ndim != 2 or tokens.dtype.kind != "i" or tokens.shape[1] != self.length:
            raise ConfigError(f"texts are tokens [B, {self.length}] int, {self.context} of each CLIP, not {tokens.dtype} "
                              f"{tokens.shape}")
        sizes = np.asarray(raw.get("sizes", np.zeros((1, len(self.sizes)))))
        if sizes.ndim != 2 or sizes.shape[1] != len(self.sizes):
            raise ConfigError(f"sizes are [B, {len(self.sizes)}], as those of the conditioner, not {sizes.shape}")
