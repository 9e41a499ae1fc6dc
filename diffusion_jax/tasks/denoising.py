"""What denoising tasks share: one loss for every network, process, parametrisation, condition.

    t ~ times,  eps ~ N(0, 1),  x_t = alpha x0 + sigma eps                                      (1)
    mse     w(t) |F(in x_t, noise, cond) - F*|^2,   F* = (x0 - skip x_t) / out                  (2)
    hybrid  (2) + bound_weight * bound, whose gradient reaches the variance only                (3)
    kl      bound_weight * bound                                                                (4)

each averaged over pixels, channels and batch; the bound is in bits/dim. (3) is eq. 16 of
2102.09672, (4) eq. 5 of 2006.11239. With an uncertainty u, a small network that sees the noise
label only, the loss of a sample becomes

    loss exp(-u) + u,                                                                           (5)

eq. 15 of 2312.02696, so that every noise level counts alike. A condition is dropped key by key:
with the key's rate each sample's raw value is replaced by that of the null condition, which makes
the network its own unconditional one (2207.12598). 'vec' and 'seq' name what the conditioner makes
of it, as a text's pooled embedding and its tokens, which are then dropped each by itself.

x0 is 'image' of a batch: a picture, a latent or an embedding. How it comes of the data is what the
tasks of tasks/diffusion.py and tasks/prior.py add.
"""
from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.diffusion import losses, scales
from diffusion_jax.diffusion.losses import Simple
from diffusion_jax.diffusion.process import DDPM, bcast, noised
from diffusion_jax.diffusion.times import Memoryless, SecondMoment, Uniform
from diffusion_jax.diffusion.variance import VARIANCES
from diffusion_jax.nn.mp import normalize_weights
from diffusion_jax.tasks.images import check_output
from diffusion_jax.types import (
    Array,
    Augments,
    Cond,
    Conditioner,
    Denoiser,
    Key,
    Memory,
    Metrics,
    Params,
    Prediction,
    Process,
    Raw,
)

OBJECTIVES = ("mse", "hybrid", "kl")
EMBEDDED = ("vec", "seq")
"""What is dropped behind the conditioner, and not before it."""
DROPPED = "dropped_"
"""Before it, of a raw condition: whether a sample's is dropped, bool [B]."""
READY, AWAY = "ready_", "away_"
"""Before a key of a condition, in a raw one: what became of it, and of what guidance leads away
from, where both were embedded before (pipelines/texts.py)."""


class Drawn(NamedTuple):
    """What is drawn for a step of training.

    Attributes:
      batch: as it is trained on, with its conditions dropped; 'image' is x0, [B, *shape].
      t: the times, [B].
      importance: the weights of their losses, [B].
      eps: the noise, shaped like x0.
      key: of dropout, and of what else a task draws.
    """

    batch: Raw
    t: Array
    importance: Array
    eps: Array
    key: Key


@dataclass(frozen=True)
class DenoisingTask(abc.ABC):
    """Trains and applies a denoising network; the parameters are {'model': ..., 'cond': ...}.

    A subclass says what a batch becomes: `blank`, `prepare` and `needs`.

    Attributes:
      model: the network, (x, noise, cond) -> output.
      cond: the conditioner, raw -> cond (models/cond.py).
      process: the forward process.
      scale: what the network predicts (diffusion/scales.py).
      shape: of one x0: (H, W, C) of an image, (F,) of an embedding.
      times: how training times are drawn.
      weight: w(t) of (2), from diffusion/losses.py.
      drop: raw key, or one of `EMBEDDED`, -> probability of dropping it in training.
      variance: that of the ancestral sampler; 'learned_range' and 'learned' mean that the network
        has twice the channels.
      objective: 'mse' (2), 'hybrid' (3) or 'kl' (4).
      bound_weight: of (3) and (4); ADM's rescaled losses use steps / 1000 and steps.
      uncertainty: u of (5), noise [B] -> [B]; None for none. Its parameters are then 'uncertainty'.
      forced: forced normalisation of the weights of magnitude-preserving layers, see nn/mp.py.

    Raises:
      ConfigError: an unknown option, or a combination that has no meaning.
    """

    model: nn.Module
    cond: Conditioner
    process: Process
    scale: scales.Scale
    shape: tuple[int, ...]
    times: Memoryless | SecondMoment = Uniform()
    weight: Simple = Simple()
    drop: Mapping[str, float] = FrozenDict()
    variance: str = "fixed_small"
    objective: str = "mse"
    bound_weight: float = 1.0
    uncertainty: nn.Module | None = None
    forced: bool = False

    def __post_init__(self):
        if self.variance not in VARIANCES:
            raise unknown("variance", self.variance, VARIANCES)
        if self.objective not in OBJECTIVES:
            raise unknown("objective", self.objective, OBJECTIVES)
        if self.objective != "mse" and not isinstance(self.process, DDPM):
            raise ConfigError(f"objective {self.objective!r} sums over a DDPM process's steps; "
                              f"use 'mse' with {self.process}")
        if self.learned_variance and self.objective == "mse":
            raise ConfigError(f"variance {self.variance!r} is trained by objective "
                              "'hybrid' or 'kl' only")
        if isinstance(self.cond, Augments) and len(self.shape) != 3:
            raise ConfigError(f"{self.noun} makes no pictures that a conditioner could augment: "
                              "leave out Augmented")
        droppable = (*self.cond.droppable, *(EMBEDDED if self.cond.droppable else ()))
        for key in self.drop:
            if key not in droppable:
                raise unknown("condition to drop", key, droppable)

    @property
    @abc.abstractmethod
    def needs(self) -> tuple[str, ...]:
        """What a data set must hold beside the images."""

    @abc.abstractmethod
    def blank(self, batch: Raw) -> Raw:
        """What `prepare` makes of such a batch, of which only the shapes matter.

        Raises:
          ConfigError: the images have another shape than the task sees.
        """

    @abc.abstractmethod
    def prepare(self, batch: Raw, frozen: Params, key: Key | None) -> Raw:
        """A batch of the data as it is trained on: 'image' is x0, [B, *shape]; without a key
        nothing is drawn.

        Raises:
          ConfigError: it takes a first stage, and its parameters are not in `frozen`.
        """

    @property
    def learned_variance(self) -> bool:
        """Whether the network puts out the variance beside its prediction."""
        return self.variance.startswith("learned")

    @property
    def num_classes(self) -> int:
        """How many labels there are, 0 where none is read."""
        return self.cond.num_classes

    def init(self, key: Key, batch: Raw) -> Params:
        """Fresh parameters; of the batch only shapes matter.

        Raises:
          ConfigError: the images have another shape than the task, or what a first stage makes has;
            the network puts out another one.
        """
        batch = self.blank(batch)
        if batch["image"].shape[1:] != tuple(self.shape):
            raise ConfigError(f"the first stage makes {batch['image'].shape[1:]} of an image, "
                              f"task.shape is {self.shape}: change one of them")
        k_model, k_cond = jax.random.split(key)
        batch = self.cond.prepare(batch, key)
        cond_vars = self.cond.init(k_cond, batch)
        cond = self.cond.apply(cond_vars, batch)
        x = jnp.zeros((len(batch["image"]), *self.shape))
        out, model_vars = self.model.init_with_output(
            k_model, x, jnp.zeros(len(x)), _for_all(x, cond))
        check_output(out.shape[1:], self.shape, self.learned_variance)
        params = {"model": model_vars["params"], "cond": cond_vars.get("params", {})}
        if self.uncertainty is not None:
            params["uncertainty"] = self.uncertainty.init(k_model, jnp.zeros(len(x)))["params"]
        return params

    def embed(self, params: Params, raw: Raw) -> Cond:
        """What the network sees of a raw condition.

        Raises:
          ConfigError: a label that the table does not have; under `jax.jit`, where nobody can look,
            its row is NaN. A part is dropped that the conditioner does not make.
        """
        ready = _behind(READY, raw)
        if ready:
            return ready
        self._check_labels(raw)
        variables = {"params": params["cond"]}
        cond = dict(self.cond.apply(variables, raw))
        drops = _behind(DROPPED, raw)
        if not drops:
            return cond
        null = self.cond.apply(variables, self.cond.null(self._alike(raw)))
        for name, is_dropped in drops.items():
            if name not in cond:
                raise ConfigError(f"task.drop has {name!r}, this conditioner makes {list(cond)}: "
                                  "drop one of them")
            for part in (name, f"{name}_mask"):
                if part in cond:
                    cond[part] = jnp.where(bcast(is_dropped, cond[part]), null[part], cond[part])
        return cond

    def _alike(self, raw: Raw) -> Raw:
        """`raw`, or its first example where the null condition is the same for all: text towers are
        as large as networks."""
        unread = {"image"} if "label" in self.cond.keys else {"image", "label"}
        rest = {name for name in raw if not name.startswith(DROPPED)} - unread
        return raw if rest - set(self.cond.droppable) else {name: raw[name][:1] for name in rest}

    def _check_labels(self, raw: Raw) -> None:
        label = raw.get("label")
        if label is None or isinstance(label, jax.core.Tracer) or "label" not in self.cond.keys:
            return
        numbers = np.asarray(label)  # not traced, whatever is traced around it
        last = self.num_classes if "label" in self.cond.droppable else self.num_classes - 1
        outside = (numbers < 0) | (numbers > last)
        if numbers.ndim == 1 and outside.any():
            first = numbers[outside][0]
            raise ConfigError(f"label {first} is outside 0 ... {self.num_classes - 1}")

    def away(self, raw: Raw) -> Raw:
        """What classifier-free guidance leads away from.

        Null conditions, but the text raw['negative'] in place of the empty one where there is one.
        """
        null = {name: x for name, x in self.cond.null(raw).items() if not name.startswith(READY)}
        ready = {READY + name: x for name, x in _behind(AWAY, raw).items()}
        return null | ready | ({"tokens": raw["negative"]} if "negative" in raw else {})

    def denoiser(self, params: Params, dropout: Key | None = None) -> Denoiser:
        """The trained denoiser, without guidance; with a key its dropout acts."""
        rngs = {} if dropout is None else {"dropout": dropout}

        def network(x: Array, noise: Array, cond: Cond) -> Array:
            cond = _for_all(x, cond)
            return self.model.apply({"params": params["model"]}, x, noise, cond, rngs=rngs)

        return scales.denoiser(network, self.process, self.scale, self.learned_variance)

    def project(self, params: Params) -> Params:
        """Forced weight normalisation, or the identity."""
        return normalize_weights(params) if self.forced else params

    def memory(self) -> Memory:
        """That of the draws of t."""
        return self.times.memory(self.process)

    def loss(
        self, params: Params, frozen: Params, batch: Raw, key: Key, train: bool
    ) -> tuple[Array, Metrics]:
        """(2), (3) or (4) at drawn times, noise and drops.

        Conditions and activations are dropped, and pictures augmented, in training only. The losses
        logged are not weighted by the importance of t, the one returned is.
        """
        memory = frozen["memory"] if frozen and "memory" in frozen else self.memory()
        batch, t, importance, eps, k_net = self.drawn(frozen, batch, key, train)
        terms = self.terms(params, batch, t, eps, k_net if train else None)
        metrics = {name: jnp.mean(value) for name, value in terms.items()}
        if train and memory:
            metrics["memory"] = self.times.learn(memory, t, jax.lax.stop_gradient(terms["loss"]))
        return jnp.mean(importance * terms["loss"]), metrics

    def drawn(self, frozen: Params, batch: Raw, key: Key, train: bool) -> Drawn:
        """What a loss looks at: a batch of the data as it is trained on, its times and its noise.

        Args:
          frozen: with the parameters of the first stage, and what `memory` remembers.
          batch: of the data.
          key: of all draws.
          train: whether pictures are augmented and conditions dropped.
        """
        k_t, k_eps, k_drop, k_net, k_cond = jax.random.split(key, 5)
        if train and isinstance(self.cond, Augments):
            # First of all: latents, embeddings and small images are those of the augmented picture.
            batch = self.cond.augmented(batch, jax.random.fold_in(key, 5))
        batch = self.prepare(batch, frozen, k_cond)
        batch = self.cond.prepare(batch, k_cond)
        x0 = batch["image"]
        memory = frozen["memory"] if frozen and "memory" in frozen else self.memory()
        t, importance = self.times.draw(self.process, memory, k_t, len(x0))
        eps = jax.random.normal(k_eps, x0.shape)
        if train:
            draws = jax.random.uniform(k_drop, (len(self.drop), len(x0)))
            batch = self.dropped(batch, dict(zip(self.drop, draws, strict=True)))
        return Drawn(batch, t, importance, eps, k_net)

    def dropped(self, raw: Raw, draws: Mapping[str, Array]) -> Raw:
        """`raw` with each key's null value where its draw, uniform [B], is below its drop rate; what
        is dropped behind the conditioner is marked for `embed`."""
        null = self.cond.null(raw) if self.drop else raw
        changed = {}
        for key, rate in self.drop.items():
            is_dropped = draws[key] < rate
            if key in EMBEDDED:
                changed[DROPPED + key] = is_dropped
            else:
                changed[key] = jnp.where(bcast(is_dropped, raw[key]), null[key], raw[key])
        return {**raw, **changed}

    def terms(
        self, params: Params, batch: Raw, t: Array, eps: Array, dropout: Key | None = None
    ) -> Metrics:
        """The loss of every sample and its parts, each [B]; with a key dropout acts.

        'mse' is the unweighted |F - F*|^2, 'bound' in bits/dim where the objective asks for it,
        'uncertainty' u of (5).

        Args:
          params: the task's.
          batch: 'image' is x0.
          t: the times, [B].
          eps: shaped like x0.
          dropout: the key of dropout; None for none.
        """
        x0 = batch["image"]
        xt = noised(self.process, x0, t, eps)
        cond = self.embed(params, batch)
        p = self.denoiser(params, dropout)(xt, t, cond, jax.random.key(0))
        c = self.scale(self.process, t)
        mse = losses.mean_flat((p.x0 - x0) ** 2) / c.out**2
        terms = {"mse": mse, "loss": self.weight(self.process, t, c) * mse}
        if self.uncertainty is not None:
            noise = jnp.broadcast_to(c.noise, t.shape)
            u = self.uncertainty.apply({"params": params["uncertainty"]}, noise)
            terms |= {"uncertainty": u, "loss": terms["loss"] * jnp.exp(-u) + u}
        if self.objective == "mse":
            return terms
        if self.objective == "hybrid":
            p = Prediction(jax.lax.stop_gradient(p.x0), logvar=p.logvar)
        bound = losses.bound(self.process, p, x0, xt, t, t - 1, t + 1, self.variance)
        bound = losses.BITS * bound
        rest = terms["loss"] if self.objective == "hybrid" else 0
        return terms | {"bound": bound, "loss": rest + self.bound_weight * bound}


def _behind(prefix: str, raw: Raw) -> dict[str, Array]:
    """Of a raw condition what stands under a prefix, without it."""
    return {name[len(prefix) :]: x for name, x in raw.items() if name.startswith(prefix)}


def _for_all(x: Array, cond: Cond) -> Cond:
    """A condition of the batch of x [B, ...], repeated where it is one for all.

    Raises:
      ConfigError: it is neither.
    """
    for name, value in cond.items():
        if len(value) not in (1, len(x)):
            raise ConfigError(f"x is a batch of {len(x)}, {name!r} of the condition one of "
                              f"{len(value)}: give as many of both")
    return {
        name: jnp.broadcast_to(value, (len(x), *value.shape[1:])) for name, value in cond.items()
    }
