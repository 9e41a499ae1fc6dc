"""The conditioner of Stable Diffusion XL (Podell et al. 2307.01952, sections 2.1, 2.2): a text through two encoders, and sizes.

With l and g the states of two CLIPs before their last layer, without their final norm,

    seq = [ l, g ]   along the channels; the refiner has g alone                      (1)
    vec = MLP([ pooled(g), sincos(s_1), sincos(s_2) ... ])                            (2)

where pooled is CLIP's own embedding of a text, projected, and s are the sizes that the network was told in training:

    height and width of the picture before it was resized | top and left of the crop | height and width of what was asked for

of which the refiner has a score of beauty in place of the last two. `sizes` are those of a whole, large picture;
raw['sizes'], and of it raw['original_size'], raw['crop'] and raw['target_size'], [B, 2] each, stand in their place.

A text is one row of tokens, [those of l | of g]. Where nothing is said, seq and pooled are zeros: that is XL's null, and the
tokens of it are -1. An empty text is a text, which is encoded.
"""
from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.models import two_clips
from diffusion_jax.models.clip import TextTower
from diffusion_jax.nn.embed import timestep_embedding
from diffusion_jax.nn.linear import torch_linear
from diffusion_jax.types import Array, Cond, Key, Noise, Raw

ABSENT = -1
"""The token of no text."""
PLACES = {"original_size": 0, "crop": 2, "target_size": 4}
"""Raw key -> where its two numbers stand among the sizes."""


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

    @property
    def optional(self) -> tuple[str, ...]:
        """The sizes, and those of their parts that it has."""
        return ("sizes", *(name for name, at in PLACES.items() if at + 2 <= len(self.sizes)))

    def __post_init__(self):
        super().__post_init__()
        if self.negative_sizes and len(self.negative_sizes) != len(self.sizes):
            raise ConfigError(f"sizes are {len(self.sizes)} numbers, negative_sizes {len(self.negative_sizes)}: give as many")
        towers = [tower for tower in (self.clip_g, self.clip_l) if tower is not None]
        two_clips.check_skip(towers, self.clip_skip)

    @property
    def length(self) -> int:
        """Tokens of a text, of all towers."""
        return self.context * (1 if self.clip_l is None else 2)

    def __call__(self, raw: Raw) -> Cond:
        """raw['tokens'] [B, length] int, and of `optional` what is there -> seq [B, context, D], vec [B, width]."""
        seq, pooled = self.texts(raw["tokens"])
        return {"seq": seq, "vec": self.vec(pooled, self.sizes_of(raw, pooled))}

    def sizes_of(self, raw: Raw, like: Array) -> Array:
        """What every row of an array is told of its size, [B, n]."""
        sizes = raw["sizes"] if "sizes" in raw else self._whole(self.sizes, like)
        for name in self.optional[1:]:
            if name in raw:
                at = PLACES[name]
                sizes = jnp.concatenate([sizes[:, :at], raw[name], sizes[:, at + 2 :]], axis=1)
        return sizes

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
        small, large = two_clips.empty_rows(self.clip_g, self.context)
        return large if self.clip_l is None else np.concatenate([small, large])

    def check(self, raw: Raw) -> None:
        """Refuses what is no batch of such tokens.

        Raises:
          ConfigError: says what it is.
        """
        two_clips.check_tokens(raw, self.length, f"{self.context} of each CLIP")
        sizes = np.asarray(raw.get("sizes", np.zeros((1, len(self.sizes)))))
        if sizes.ndim != 2 or sizes.shape[1] != len(self.sizes):
            raise ConfigError(f"sizes are [B, {len(self.sizes)}], as those of the conditioner, not {sizes.shape}")
        for name in PLACES.keys() & raw.keys():
            if np.shape(raw[name])[1:] != (2,):
                raise ConfigError(f"{name} is [B, 2], not {np.shape(raw[name])}")
