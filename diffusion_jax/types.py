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
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import flax.struct
import jax

Array = jax.Array
Key = jax.Array
Params = Any                      # a pytree of arrays
State = Any                       # what a sampler remembers between steps: any pytree
Metrics = Mapping[str, Array]     # scalars to log
Memory = Mapping[str, Array]      # what a task remembers from step to step beside its parameters

Cond = Mapping[str, Array]
"""What a network sees, embedded: vec [B, D] | seq [B, L, D] with seq_mask [B, L] | cat [B, H, W, C] | guidance [B, G],
and `UNTIL`."""

UNTIL = "until"
"""Of a condition, [B]: the noise label of the time that a step goes to, for networks that know the mean way there."""

Raw = Mapping[str, Any]
"""What a batch or a user holds: image, label, tokens, clip_image, low_res, mask, known ..., each an array of JAX or of NumPy with
the batch first."""

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


class Conditioner(Protocol):
    """From what a batch or a user holds to what a network sees: a module like those of models/cond.py.

    It is embedded once per image, while the network runs once per step. The null condition of
    classifier-free guidance is the embedding of a null raw condition, whatever that is for the
    model at hand: one more row of the label table, the empty text, a learned vector.
    """

    @property
    def keys(self) -> tuple[str, ...]:
        """The raw keys that it reads."""
        ...

    @property
    def derived(self) -> tuple[str, ...]:
        """Those of `keys` that `prepare` makes of the image: a data set need not hold them."""
        ...

    @property
    def droppable(self) -> tuple[str, ...]:
        """The raw keys that `null` replaces, each of which may be dropped at its own rate."""
        ...

    @property
    def num_classes(self) -> int:
        """How many labels there are, 0 where it reads none."""
        ...

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """Fresh variables, {} or {'params': ...}: flax's, as is `apply`."""
        ...

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """`__call__` with its parameters."""
        ...

    def __call__(self, raw: Raw) -> Cond:
        """The embedding."""
        ...

    def prepare(self, raw: Raw, key: Key, noise: Noise = ..., level: float | None = None) -> Raw:
        """`raw` with what follows from the batch itself: an image made small, and noised.

        Args:
          raw: a batch.
          key: of all draws.
          noise: the source of noise.
          level: of conditioning augmentation in sampling; None, in training, draws it.
        """
        ...

    def null(self, raw: Raw) -> Raw:
        """The same batch with its condition taken away."""
        ...

    def check(self, raw: Raw) -> None:
        """On the host: `ConfigError` for what a jitted program would accept silently."""
        ...


@runtime_checkable
class Augments(Protocol):
    """A conditioner that also augments the pictures of training: one like models/augment.py's.

    Training calls `augmented` before anything else is made of a batch, and nobody else does.
    """

    @property
    def cond(self) -> Conditioner:
        """The conditioner without augmentation: the same for pictures that are not augmented."""
        ...

    def augmented(self, raw: Raw, key: Key) -> Raw:
        """A batch whose pictures are augmented, with what tells `__call__` how.

        Args:
          raw: 'image' is a picture, [B, H, W, C] in [-1, 1].
          key: of all draws.
        """
        ...


class FirstStage(Protocol):
    """The frozen part that a run trains on: it turns pictures into what the task sees.

    An autoencoder puts latents in the place of the pictures, the CLIP of unCLIP's parts adds
    embeddings to them. Its parameters are frozen['first_stage'] of `Task.loss`.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of a picture."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys that it reads of a batch beside 'image'."""
        ...

    @property
    def makes(self) -> tuple[str, ...]:
        """The keys of a batch that `prepare` makes: 'image' where it replaces the pictures."""
        ...

    def prepare(self, params: Params, raw: Raw, key: Key | None = None) -> Raw:
        """A batch of pictures as the task trains on it.

        Args:
          params: of this first stage.
          raw: 'image' [B, H, W, C] in [-1, 1] and what it `needs`.
          key: of its draws; without one there are none.
        """
        ...

    def blank(self, raw: Raw) -> Raw:
        """What `prepare` gives of such a batch, zeros of those shapes: for `Task.init`."""
        ...


class Task(Protocol):
    """What can be trained: a frozen dataclass of modules, hashable, equal when its config is.

    What it can do beside that, tasks/kinds.py says.
    """

    noun: ClassVar[str]
    """What it is, with its article, for sentences: 'a diffusion model'."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys that a data set must hold beside 'image'."""
        ...

    @property
    def num_classes(self) -> int:
        """How many labels it reads or tells apart, 0 for none."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example of what it sees or makes: (H, W, C) of an image, (F,) of an embedding."""
        ...

    def init(self, key: Key, batch: Raw) -> Params:
        """Fresh parameters; `batch` gives shapes only."""
        ...

    def memory(self) -> Memory:
        """What the first step remembers; {} for a task that remembers nothing."""
        ...

    def loss(self, params: Params, frozen: Params, batch: Raw, key: Key, train: bool) -> tuple[Array, Metrics]:
        """The scalar to minimise, averaged over the batch, and scalars to log.

        A task with a memory finds it in frozen['memory'], and in training returns the next one as metrics['memory']. Where a
        batch is trained on in parts, each part hands its memory to the next: one that counts updates belongs to a `WholeBatch`.
        """
        ...

    def project(self, params: Params) -> Params:
        """Applied after every update: the identity, or EDM2's forced weight normalisation."""
        ...


@runtime_checkable
class WholeBatch(Protocol):
    """A task whose loss looks at all of its batch at once: loss(batch) = overall(outputs(batch)).

    It is trained on parts of a batch, in turn or on several devices, as on the whole (train/step.py).
    """

    def outputs(self, params: Params, frozen: Params, batch: Raw, key: Key, train: bool) -> Params:
        """What `overall` reads of every example: a pytree of floating point arrays with the batch first."""
        ...

    def overall(self, params: Params, frozen: Params, outputs: Params, train: bool) -> tuple[Array, Metrics]:
        """What `Task.loss` returns, of the outputs of all examples; once per update."""
        ...


@runtime_checkable
class Undivided(Protocol):
    """A task whose loss may look at all of its batch at once, in a way that is no `WholeBatch`."""

    @property
    def undivided(self) -> str:
        """Why its batch cannot be trained on in parts, a clause; '' where it can."""
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
