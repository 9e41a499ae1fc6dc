"""What models of few steps share: they denoise as a `Diffusion` does, and are trained by another loss.

Their parameters are those of the `Diffusion` with the same network and conditions, so that either may start from the other
(`config.init`). A subclass says what the loss is, and which samplers can read what the network has learned.
"""
from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import flax.linen as nn
from flax.core import FrozenDict

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.scales import Scale
from diffusion_jax.diffusion.times import Memoryless, Uniform
from diffusion_jax.tasks import kinds
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.types import Array, Cond, Conditioner, Denoiser, FirstStage, Key, Memory, Metrics, Params, Process, Raw


@dataclass(frozen=True)
class FewSteps(abc.ABC):
    """A network for pictures or latents in few steps.

    Attributes:
      model: the network, (x, noise, cond) -> output.
      cond: the conditioner.
      process: the forward process.
      scale: what the network predicts.
      shape: (H, W, C) of what the network sees.
      first_stage: as in `Diffusion`.
      times: how training times are drawn.
      drop: raw key -> probability of dropping it in training.
      base: the same network as a diffusion model; made of the others.

    Raises:
      ConfigError: times that depend on the losses so far; what `Diffusion` refuses.
    """

    model: nn.Module
    cond: Conditioner
    process: Process
    scale: Scale
    shape: tuple[int, int, int]
    first_stage: FirstStage | None = None
    times: Memoryless = Uniform()
    drop: Mapping[str, float] = FrozenDict()
    base: Diffusion = field(init=False, compare=False, repr=False)

    noun: ClassVar[str]
    variance: ClassVar[str] = "fixed_small"
    learned_variance: ClassVar[bool] = False

    def __post_init__(self):
        if not isinstance(self.times, Memoryless):
            raise ConfigError(f"{self.noun} looks at two times at once, which no memory of losses tells: leave task.times out")
        base = Diffusion(
            model=self.model, cond=self.cond, process=self.process, scale=self.scale, shape=self.shape,
            first_stage=self.first_stage, times=self.times, drop=self.drop)
        object.__setattr__(self, "base", base)
        self.check()

    @abc.abstractmethod
    def check(self) -> None:
        """Raises ConfigError for options that have no meaning together."""

    @abc.abstractmethod
    def check_sampler(self, name: str) -> None:
        """Raises ConfigError for a sampler, by its name, that cannot read what the network knows."""

    @abc.abstractmethod
    def memory(self) -> Memory:
        """What it remembers from step to step."""

    @abc.abstractmethod
    def loss(self, params: Params, frozen: Params, batch: Raw, key: Key, train: bool) -> tuple[Array, Metrics]:
        """The scalar to minimise, and scalars to log."""

    @property
    def autoencoder(self) -> kinds.Encoding | None:
        """The first stage, where it is one that makes latents of pictures."""
        return self.base.autoencoder

    @property
    def embedder(self) -> kinds.Embeds | None:
        """The first stage, where it is one that adds embeddings."""
        return self.base.embedder

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the pictures that it makes."""
        return self.base.picture_shape

    @property
    def needs(self) -> tuple[str, ...]:
        """What a data set must hold beside the images."""
        return self.base.needs

    @property
    def num_classes(self) -> int:
        """How many labels there are, 0 where none is read."""
        return self.base.num_classes

    def init(self, key: Key, batch: Raw) -> Params:
        """Fresh parameters; of the batch only shapes matter."""
        return self.base.init(key, batch)

    def prepare(self, batch: Raw, frozen: Params, key: Key | None) -> Raw:
        """A batch as it is trained on, see `Diffusion.prepare`."""
        return self.base.prepare(batch, frozen, key)

    def embed(self, params: Params, raw: Raw) -> Cond:
        """What the network sees of a raw condition."""
        return self.base.embed(params, raw)

    def away(self, raw: Raw) -> Raw:
        """What classifier-free guidance leads away from."""
        return self.base.away(raw)

    def denoiser(self, params: Params, dropout: Key | None = None) -> Denoiser:
        """The trained denoiser, without guidance."""
        return self.base.denoiser(params, dropout)

    def project(self, params: Params) -> Params:
        """The parameters as they are."""
        return params
