"""The types that everything else is made of: the page to read first.

One idea runs through the package:

    x_t = alpha(t) x0 + sigma(t) eps                                                  (1)

and a denoiser is a function that returns its estimate of x0. A network becomes a denoiser through four scalars (`Scales`);
guidance maps a denoiser to a denoiser; a sampler is a pair of pure functions; one `lax.scan` drives every sampler; one train
step drives every `Task`.

Letters are the same everywhere: x0, xt (or x), eps, v, alpha, sigma, t (now), s (the time stepped to), cond, key, params.
Images are [B, H, W, C] in [-1, 1]; the time t has the unit of its process (an integer step, a noise level, a fraction).
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.struct
import jax

Array = jax.Array
Key = jax.Array
Params = Any                      # a pytree of arrays
State = Any                       # what a sampler remembers between steps: any pytree
Metrics = Mapping[str, Array]     # scalars to log
Memory = Mapping[str, Array]      # what a task remembers from step to step beside its parameters

Cond = Mapping[str, Array]
"""What a network sees, embedded: vec [B, D] | seq [B, L, D] with seq_mask [B, L] | cat [B, H, W, C]."""

Raw = Mapping[str, Array]
"""What a batch or a user holds: image, label, tokens, clip_image, low_res, mask, known ..., each with the batch first."""

Network = Callable[[Array, Array, Cond], Array]
"""(input [B, ...], noise label [B], cond) -> output [B, ...]: the bare F of (2), its weights already bound."""

Noise = Callable[..., Array]
"""(key, shape, dtype) -> standard normal draw; `jax.random.normal` unless a caller replays known noise."""


@flax.struct.dataclass
class Prediction:
    """What a denoiser returns for x_t.

    Attributes:
      x0: the estimate of x0, shaped like x_t.
      eps: the estimate of eps where it does not follow from x0 by (1): a clipped x0 next to an unclipped eps. None otherwise.
      logvar: the raw variance channels where the network learned them, shaped like x0.
      grad: d log p(y | x_t) / d x_t, not yet folded into x0, shaped like x_t: the ancestral sampler shifts its mean by
        variance * grad, the others fold it into the score.
    """

    x0: Array
    eps: Array | None = None
    logvar: Array | None = None
    grad: Array | None = None


Denoiser = Callable[[Array, Array, Cond, Key], Prediction]
"""(x [B, ...], t scalar when sampling or [B] when training, cond, key) -> Prediction."""

Guidance = Callable[[Denoiser], Denoiser]


@runtime_checkable
class Process(Protocol):
    """The forward process (1). `t` is a scalar or [B], its result shaped like it."""

    @property
    def t_max(self) -> float:
        """The noisiest time that a network is trained on."""
        ...

    @property
    def t_clean(self) -> float:
        """The time at which x_t = x0: alpha = 1, sigma = 0."""
        ...

    def alpha(self, t: Array) -> Array:
        """The factor of x0 at time t."""
        ...

    def sigma(self, t: Array) -> Array:
        """The factor of eps at time t."""
        ...

    def unit(self, t: Array) -> Array:
        """t mapped to [0, 1], 0 clean and 1 noisiest: the clock of guidance schedules."""
        ...

    def at(self, u: Array) -> Array:
        """The inverse of `unit` for u in [0, 1): what training-time samplers draw through."""
        ...

    def time(self, ratio: Array) -> Array:
        """The t at which sigma / alpha = ratio: for grids and samplers that think in noise levels."""
        ...

    def label(self, t: Array) -> Array:
        """t as a network sees it."""
        ...


class Scales(NamedTuple):
    """The four scalars that make a denoiser of a network F.

    x0 = skip x + out F(in_ x, noise, cond)                                           (2)
    """

    in_: Array
    noise: Array
    skip: Array
    out: Array


class Sampler(NamedTuple):
    """A pair of pure functions, driven by `diffusion.samplers.sample`.

    init: (x [B, ...], the number of steps, a Python int) -> state; the history of multistep methods lives there.
    step: (denoise, x, state, t, s, key) -> (x at time s, state), where denoise(x, t, key) -> Prediction has its condition
      bound and may be called as often as the method likes.
    """

    init: Callable[[Array, int], State]
    step: Callable[..., tuple[Array, State]]


class Task(Protocol):
    """Something that can be trained: a frozen dataclass of modules, hashable, equal when its config is equal."""

    def init(self, key: Key, batch: Raw) -> Params:
        """Fresh parameters; `batch` gives shapes only."""
        ...

    def memory(self) -> Memory:
        """What the first step remembers; {} for a task that remembers nothing."""
        ...

    def loss(self, params: Params, frozen: Params, batch: Raw, key: Key, train: bool) -> tuple[Array, Metrics]:
        """The scalar to minimise, averaged over the batch, and scalars to log.

        A task with a memory finds it in frozen['memory'], and in training returns the next one as metrics['memory'].
        """
        ...

    def project(self, params: Params) -> Params:
        """Applied after every update: the identity, or EDM2's forced weight normalisation."""
        ...


@flax.struct.dataclass
class TrainState:
    """All that a training run is: the checkpoint holds exactly this and the config.

    Attributes:
      step: int32 scalar, the number of updates done.
      params: the task's parameters.
      opt_state: the one optax state.
      ema: profile name -> averaged parameters.
      memory: see `Task.memory`.
    """

    step: Array
    params: Params
    opt_state: Any
    ema: dict[str, Params]
    memory: Memory = flax.struct.field(default_factory=dict)
