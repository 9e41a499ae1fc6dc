"""The conditioner of Stable Diffusion 3 (Esser et al. 2403.03206, section 5.2): one text through three encoders.

With l and g the states of two CLIPs before their last layer, without their final norm, and t those of T5 after its own,

    seq = [ [l, g, 0], t ]        along the tokens, the first ones filled up with zeros to T5's width        (1)
    vec = [ pooled(l), pooled(g) ]                                                                           (2)

where pooled is CLIP's own embedding of a text, projected. T5 may be left out: t is then 0, as many rows of it. What fills up a
text is attended to, in T5 and behind it.

A text is one row of tokens, [those of l | of g | of T5], as data/sd3_tokens.py makes it; it joins other conditioners as
models/cond.py says.
"""
from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.models import two_clips
from diffusion_jax.models.clip import TextTower
from diffusion_jax.models.t5 import T5Encoder
from diffusion_jax.types import Cond, Key, Noise, Raw

T5_EMPTY = (1, 0)
"""T5's tokens of the empty text: the end, and what fills up."""


class SD3Text(nn.Module):
    """(1) and (2), once per image.

    Attributes:
      clip_l, clip_g: the towers.
      t5: the encoder; None leaves it out.
      width: channels of seq: T5's.
      context: tokens of each CLIP.
      t5_context: tokens of T5, or rows of zeros in their place.
      clip_skip: layers left out beside the last one.
      frozen: whether training leaves the encoders as they are, see models/text_cond.py:TowerText.

    Parameters: clip_l, clip_g, t5.

    Raises:
      ConfigError: the width is not T5's, or less than those of both CLIPs.
    """

    clip_l: TextTower
    clip_g: TextTower
    t5: T5Encoder | None = None
    width: int = 4096
    context: int = 77
    t5_context: int = 256
    clip_skip: int = 0
    frozen: bool = True

    keys = droppable = ("tokens",)
    derived = ()
    num_classes = 0

    def __post_init__(self):
        super().__post_init__()
        both = self.clip_l.width + self.clip_g.width
        if self.width < both:
            raise ConfigError(f"width {self.width} has no room for the {both} channels of both CLIPs: make it larger")
        if self.t5 is not None and self.t5.width != self.width:
            raise ConfigError(f"the conditioner's width is T5's, {self.t5.width}, not {self.width}")
        two_clips.check_skip((self.clip_l, self.clip_g), self.clip_skip)

    @property
    def length(self) -> int:
        """Tokens of a text, of all three."""
        return 2 * self.context + (0 if self.t5 is None else self.t5_context)

    def __call__(self, raw: Raw) -> Cond:
        """raw['tokens'] [B, length] int -> {'seq': [B, context + t5_context, width], 'vec': [B, Fl + Fg]}."""
        of_l, of_g, of_t5 = jnp.split(raw["tokens"], [self.context, 2 * self.context], axis=1)
        small, large = self.clip_l(of_l), self.clip_g(of_g)
        last = -2 - self.clip_skip
        clips = jnp.concatenate([small.states[last], large.states[last]], axis=-1).astype(jnp.float32)
        clips = jnp.pad(clips, ((0, 0), (0, 0), (0, self.width - clips.shape[-1])))
        rest = jnp.zeros((len(of_l), self.t5_context, self.width)) if self.t5 is None else self.t5(of_t5)
        cond = {
            "seq": jnp.concatenate([clips, rest], axis=1),
            "vec": jnp.concatenate([small.features, large.features], axis=-1).astype(jnp.float32),
        }
        return jax.tree.map(jax.lax.stop_gradient, cond) if self.frozen else cond

    def prepare(self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None) -> Raw:
        """raw itself."""
        return raw

    def null(self, raw: Raw) -> Raw:
        """The batch with empty texts."""
        return {**raw, "tokens": jnp.broadcast_to(self.empty()[None], raw["tokens"].shape)}

    def empty(self) -> np.ndarray:
        """The tokens of the empty text, int32 [length]."""
        of_t5 = np.full(self.length - 2 * self.context, T5_EMPTY[1], np.int32)
        of_t5[:1] = T5_EMPTY[0]
        return np.concatenate([*two_clips.empty_rows(self.clip_l, self.context), of_t5])

    def check(self, raw: Raw) -> None:
        """Refuses what is no batch of such tokens.

        Raises:
          ConfigError: says what it is.
        """
        two_clips.check_tokens(raw, self.length, f"twice {self.context} of CLIP and those of T5")
