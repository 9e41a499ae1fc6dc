"""Conditioners of latent diffusion (Rombach et al. 2112.10752): texts and labels as tokens, images and masks stacked behind x.

    text    seq = tower(tokens),        null: the tokens of the empty text            (1)
    label   seq = [table(label)],       null: one more row                            (2)
    stack   cat = raw[key]                                                            (3)

They have what models/cond.py says that a conditioner has, and join there.
"""
from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.models.clip import TextState
from diffusion_jax.models.cond import check_labels
from diffusion_jax.types import Array, Cond, Key, Noise, Raw


class TowerText(nn.Module):
    """(1): a text through a tower, of CLIP or of models/bert.py, once per image.

    Attributes:
      tower: tokens [B, L] -> `TextState`, or [B, L, D].
      empty: the tokens of the empty text, by their places: start, end, and what fills up (49406, 49407, 49407 in Stable Diffusion
        1, whose successor fills up with 0).
      context: tokens of a text.
      frozen: whether training leaves the tower as it is; its parameters are then in the checkpoint all the same. It gets no
        gradient, and optimisers here decay no tower (train/optim.py).

    Parameters: tower.
    """

    tower: nn.Module
    empty: tuple[int, ...] = (49406, 49407, 49407)
    context: int = 77
    frozen: bool = True

    keys = droppable = ("tokens",)
    derived = ()
    num_classes = 0

    def __call__(self, raw: Raw) -> Cond:
        """raw['tokens'] [B, L] int -> {'seq': [B, L, D]}."""
        found = self.tower(raw["tokens"])
        seq = found.tokens if isinstance(found, TextState) else found
        return {"seq": jax.lax.stop_gradient(seq) if self.frozen else seq}

    def prepare(self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None) -> Raw:
        """raw itself."""
        return raw

    def null(self, raw: Raw) -> Raw:
        """The batch with empty texts."""
        *first, fill = self.empty
        length = raw["tokens"].shape[1]
        row = np.array([*first, *[fill] * max(length - len(first), 0)][:length], np.int32)
        return {**raw, "tokens": jnp.broadcast_to(row[None], raw["tokens"].shape)}

    def check(self, raw: Raw) -> None:
        """Refuses what is no batch of tokens.

        Raises:
          ConfigError: says what it is.
        """
        tokens = np.asarray(raw["tokens"])
        if tokens.ndim != 2 or tokens.dtype.kind != "i" or not 0 < tokens.shape[1] <= self.context:
            raise ConfigError(f"texts are tokens [B, {self.context}] int, not {tokens.dtype} {tokens.shape}")


class LabelToken(nn.Module):
    """(2): a class label as the only token.

    Attributes:
      num_classes: labels are 0 ... num_classes - 1; row num_classes stands for "no label".
      width: channels of the token.

    Parameters: table, which starts as N(0, 1), [num_classes + 1, width].
    """

    num_classes: int
    width: int

    keys = droppable = ("label",)
    derived = ()

    @nn.compact
    def __call__(self, raw: Raw) -> Cond:
        """raw['label'] [B] int -> {'seq': [B, 1, width]}; NaN for a label beyond the table."""
        table = self.param("table", nn.initializers.normal(1.0), (self.num_classes + 1, self.width), jnp.float32)
        return {"seq": jnp.take(table, raw["label"], axis=0, mode="fill", fill_value=jnp.nan)[:, None]}

    def prepare(self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None) -> Raw:
        """raw itself."""
        return raw

    def null(self, raw: Raw) -> Raw:
        """The batch with every label replaced by the null label."""
        return {**raw, "label": jnp.full_like(raw["label"], self.num_classes)}

    def check(self, raw: Raw) -> None:
        """Refuses labels outside [0, num_classes).

        Raises:
          ConfigError: names the first such label.
        """
        check_labels(raw, self.num_classes)


class Stack(nn.Module):
    """(3): an image or a mask behind x, in its latents' space: what makes a network inpaint or enlarge. Has no parameters.

    Attributes:
      key: of the raw condition, [B, h, w, channels]: 'inpaint' for a mask and the latents of what is known, 'low_res' ...
      channels: how many it has.
      mask_last: of 'inpaint', whether it is latent diffusion's own form, (4) of pipelines/latent.py, or Stable Diffusion's, (3).
    """

    key: str
    channels: int
    mask_last: bool = False

    derived = droppable = ()
    num_classes = 0

    @property
    def keys(self) -> tuple[str, ...]:
        """The one that it reads."""
        return (self.key,)

    def __call__(self, raw: Raw) -> Cond:
        """raw[key] [B, h, w, channels] -> {'cat': the same}."""
        return {"cat": raw[self.key]}

    def prepare(self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None) -> Raw:
        """raw itself."""
        return raw

    def null(self, raw: Raw) -> Raw:
        """raw itself: it is always seen."""
        return raw

    def check(self, raw: Raw) -> None:
        """Refuses another number of channels.

        Raises:
          ConfigError: says what there is.
        """
        given: Array = np.asarray(raw[self.key])
        if given.ndim != 4 or given.shape[-1] != self.channels:
            raise ConfigError(f"{self.key} is [B, h, w, {self.channels}], not {given.shape}")
