"""Conditioners of labels and small images: from what a batch holds (Raw) to what a network sees (Cond).

What a conditioner is, `types.Conditioner` says.
"""
from __future__ import annotations

from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.diffusion.process import Cosine, noised
from diffusion_jax.nn.degrade import DEGRADE
from diffusion_jax.nn.embed import timestep_embedding
from diffusion_jax.nn.linear import Linear, torch_linear
from diffusion_jax.nn.mp import MPLayer
from diffusion_jax.nn.resample import bilinear, shrink
from diffusion_jax.types import Array, Augments, Cond, Conditioner, Key, Noise, Raw


@runtime_checkable
class ReadsMore(Protocol):
    """A conditioner that also reads raw keys which nobody has to give."""

    @property
    def optional(self) -> tuple[str, ...]:
        """These keys; what is missing has its default."""
        ...


def optional_keys(cond: Conditioner | nn.Module) -> tuple[str, ...]:
    """The raw keys that a conditioner reads where they are there, beside its `keys`."""
    return cond.optional if isinstance(cond, ReadsMore) else ()


class Label(nn.Module):
    """A class label, embedded by a table: DiT's (arXiv 2212.09748), or with `std` 1 ADM's, which starts as PyTorch's do.

    Attributes:
      num_classes: labels are 0 ... num_classes - 1.
      width: channels of the embedding; that of the network.
      null_row: one more row, label num_classes, stands for "no label"; guidance and label dropout need it.
      std: of the normal distribution that the table is drawn from.

    Parameters: table [num_classes + null_row, width].
    """

    num_classes: int
    width: int
    null_row: bool = True
    std: float = 0.02

    keys = ("label",)
    derived = ()

    @property
    def droppable(self) -> tuple[str, ...]:
        """The label, where there is a null row."""
        return ("label",) if self.null_row else ()

    @nn.compact
    def __call__(self, raw: Raw) -> Cond:
        """raw['label'] [B] int -> {'vec': [B, width]}; NaN for a label beyond the table."""
        rows = self.num_classes + int(self.null_row)
        table = self.param("table", nn.initializers.normal(self.std), (rows, self.width), jnp.float32)
        return {"vec": jnp.take(table, raw["label"], axis=0, mode="fill", fill_value=jnp.nan)}

    def prepare(self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None) -> Raw:
        """raw itself."""
        return raw

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
        check_labels(raw, self.num_classes)


def check_labels(raw: Raw, num_classes: int) -> None:
    """Refuses labels outside [0, num_classes), naming the first such label."""
    label = np.asarray(raw["label"])
    outside = label[(label < 0) | (label >= num_classes)]
    if outside.size:
        raise ConfigError(f"label {outside[0]} is outside 0 ... {num_classes - 1}")


class OneHot(nn.Module):
    """A class label through a linear layer: sqrt(N) W onehot(label), and 0 for "no label" (EDM2, arXiv 2312.02696).

    Attributes:
      num_classes: N; labels are 0 ... N - 1.
      width: channels of the embedding; that of the network's vec.
      normalised: whether W is normalised where it is used, as from step D of EDM2's ladder on, so that vec has unit variance.

    Parameters: emb, of nn/mp.py:MPLayer or without bias of nn/linear.py:Linear.
    """

    num_classes: int
    width: int
    normalised: bool = True

    keys = droppable = ("label",)
    derived = ()

    @nn.compact
    def __call__(self, raw: Raw) -> Cond:
        """raw['label'] [B] int, or soft labels [B, N], -> {'vec': [B, width]}."""
        label = raw["label"]
        soft = label if label.ndim == 2 else jax.nn.one_hot(label, self.num_classes)
        one = nn.initializers.variance_scaling(1.0, "fan_in", "normal")  # with the factor below, vec of unit variance
        layer = MPLayer(self.width, name="emb") if self.normalised else Linear(self.width, one, use_bias=False, name="emb")
        return {"vec": layer(self.num_classes**0.5 * soft)}

    def prepare(self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None) -> Raw:
        """raw itself."""
        return raw

    def null(self, raw: Raw) -> Raw:
        """The batch without labels: label N, whose one-hot vector is 0."""
        label = raw["label"]
        return {**raw, "label": jnp.zeros_like(label) if label.ndim == 2 else jnp.full_like(label, self.num_classes)}

    def check(self, raw: Raw) -> None:
        """Refuses labels outside [0, num_classes).

        Raises:
          ConfigError: names the first such label.
        """
        check_labels(raw, self.num_classes)


class Nothing(nn.Module):
    """No condition: an unconditional network. Has no parameters."""

    keys = derived = droppable = ()
    num_classes = 0

    def __call__(self, raw: Raw) -> Cond:
        """The empty condition."""
        return {}

    def prepare(self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None) -> Raw:
        """raw itself."""
        return raw

    def null(self, raw: Raw) -> Raw:
        """raw itself: there is nothing to take away."""
        return raw

    def check(self, raw: Raw) -> None:
        """Accepts everything."""


ENLARGE = ("", "bicubic")


class LowRes(nn.Module):
    """A smaller image, which the network enlarges and stacks behind x: what makes it an upsampler (2105.05233 sec. 6).

    With augmentation (2106.15282, 2205.11487) the small image is noised to a level that the network is told: what the network of
    the smaller size gets wrong then looks like what it has seen. In training the level is uniform in [0, augment].

    Attributes:
      factor: how many times smaller, a divisor of the image's sides; in training its pixels are means over factor x factor.
      augment: the largest level, 0 ... 1, a time of the cosine process; 0 for none.
      width: channels of the embedded level, those of the network's vec; needed with `augment`.
      degrade: what else is done to the small image in training: 'blur' or 'bsr' (nn/degrade.py), unCLIP's for its two upsamplers.
      enlarge: 'bicubic' brings the small image to its size by that filter, as Karlo does; '' leaves it to the network.

    Parameters: fc1, fc2 with `augment`, none without.
    """

    factor: int
    augment: float = 0.0
    width: int = 0
    degrade: str = ""
    enlarge: str = ""

    keys = derived = ("low_res",)
    droppable = ()
    num_classes = 0

    def __post_init__(self):
        super().__post_init__()
        for kind, got, known in (("degradation", self.degrade, DEGRADE), ("enlargement", self.enlarge, ENLARGE)):
            if got not in known:
                raise unknown(kind, got, known)

    @nn.compact
    def __call__(self, raw: Raw) -> Cond:
        """raw['low_res'] [B, h, w, C] -> {'cat': the same}, with `augment` and 'vec': the embedded raw['level'] [B]."""
        b, height, width, channels = raw["low_res"].shape
        small = raw["low_res"]
        if self.enlarge:
            small = jax.image.resize(small, (b, self.factor * height, self.factor * width, channels), "cubic")
        if not self.augment:
            return {"cat": small}
        h = torch_linear(self.width, name="fc1")(timestep_embedding(1000 * raw["level"], self.width))
        return {"cat": small, "vec": torch_linear(self.width, name="fc2")(nn.silu(h))}

    def prepare(self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None) -> Raw:
        """`raw` with 'low_res', made of 'image' where it is missing, and with `augment` noised to 'level'.

        It is degraded where it is made of 'image' and `level` is None: in training.

        Args:
          raw: a batch.
          key: of all draws.
          noise: the source of noise.
          level: that of every image; None draws them.
        """
        raw = dict(raw)
        if "low_res" not in raw:
            raw["low_res"] = shrink(raw["image"], self.factor)
            if self.degrade and level is None:
                raw["low_res"] = DEGRADE[self.degrade](raw["low_res"], jax.random.fold_in(key, 2))
        if self.augment:
            k_level, k_noise = jax.random.split(key)
            small = raw["low_res"]
            drawn = jax.random.uniform(k_level, small.shape[:1], maxval=self.augment)
            raw["level"] = drawn if level is None else jnp.full(small.shape[:1], level)
            raw["low_res"] = noised(Cosine(), small, raw["level"], noise(k_noise, small.shape, small.dtype))
        return raw

    def null(self, raw: Raw) -> Raw:
        """raw itself: an upsampler always sees its image."""
        return raw

    def check(self, raw: Raw) -> None:
        """Refuses what is no batch of images in [-1, 1].

        Raises:
          ConfigError: says what it is.
        """
        small = np.asarray(raw["low_res"])
        if small.ndim != 4 or not (np.abs(small) <= 1.001).all():
            raise ConfigError(f"low_res is a batch of images [B, h, w, C] in [-1, 1], not {small.shape} with other values")


def _stack(a: Array, b: Array) -> Array:
    """Two images of any size, one behind the other at the size of the larger."""
    height, width = (max(sides) for sides in zip(a.shape[1:3], b.shape[1:3], strict=True))
    return jnp.concatenate([bilinear(a, height, width), bilinear(b, height, width)], axis=-1)


JOIN = {"vec": jnp.add, "cat": _stack}


class Joint(nn.Module):
    """Several conditioners at once. Where two of them give a vec, the network sees the sum; where two give a cat, both, the
    smaller one enlarged.

    Attributes:
      parts: the conditioners, which read different keys.

    Parameters: parts_0, parts_1 ...

    Raises:
      ConfigError: a part that augments pictures.

    Example:
      Joint((Label(1000, 768, null_row=False), LowRes(4)))            # ADM's upsampler 64 -> 256
    """

    parts: tuple[nn.Module, ...]

    def __post_init__(self):
        super().__post_init__()
        if any(isinstance(part, Augments) for part in self.parts):
            raise ConfigError("Augmented stands around all other conditioners: put this Joint into it")

    @property
    def keys(self) -> tuple[str, ...]:
        """Those of all parts."""
        return tuple(key for part in self.parts for key in part.keys)

    @property
    def derived(self) -> tuple[str, ...]:
        """Those of all parts."""
        return tuple(key for part in self.parts for key in part.derived)

    @property
    def droppable(self) -> tuple[str, ...]:
        """Those of all parts."""
        return tuple(key for part in self.parts for key in part.droppable)

    @property
    def optional(self) -> tuple[str, ...]:
        """Those of all parts."""
        return tuple(key for part in self.parts for key in optional_keys(part))

    @property
    def num_classes(self) -> int:
        """That of the part with labels."""
        return max(part.num_classes for part in self.parts)

    def __call__(self, raw: Raw) -> Cond:
        """What all parts give."""
        joint: dict[str, Array] = {}
        for part in self.parts:
            for key, value in part(raw).items():
                joint[key] = JOIN[key](joint[key], value) if key in joint and key in JOIN else value
        return joint

    def prepare(self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None) -> Raw:
        """What all parts prepare."""
        for i, part in enumerate(self.parts):
            raw = part.prepare(raw, jax.random.fold_in(key, i), noise, level)
        return raw

    def null(self, raw: Raw) -> Raw:
        """The batch with every droppable condition taken away."""
        for part in self.parts:
            raw = part.null(raw) if part.droppable else raw
        return raw

    def check(self, raw: Raw) -> None:
        """What all parts refuse."""
        for part in self.parts:
            part.check(raw)
