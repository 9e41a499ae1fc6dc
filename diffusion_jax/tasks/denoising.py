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
the network its own unconditional one (2207.12598).

x0 is 'image' of a batch: a picture, a latent or an embedding. How it comes of the data is what the
tasks of tasks/diffusion.py and tasks/prior.py add.
"""
from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass

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
      drop: raw key -> probability of dropping it in training.
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
        for key in self.drop:
            if key not in self.cond.droppable:
                raise unknown("condition to drop", key, self.cond.droppable)

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
            its row is NaN.
        """
        self._check_labels(raw)
        return self.cond.apply({"params": params["cond"]}, raw)

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
        null = self.cond.null(raw)
        return {**null, "tokens": raw["negative"]} if "negative" in raw else null

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
        terms = self.terms(params, batch, t, eps, k_net if train else None)
        metrics = {name: jnp.mean(value) for name, value in terms.items()}
        if train and memory:
            metrics["memory"] = self.times.learn(memory, t, jax.lax.stop_gradient(terms["loss"]))
        return jnp.mean(importance * terms["loss"]), metrics

    def dropped(self, raw: Raw, draws: Mapping[str, Array]) -> Raw:
        """`raw` with each key's null value where its draw, uniform [B], is below its drop rate."""
        null = self.cond.null(raw) if self.drop else raw
        changed = {
            key: jnp.where(bcast(draws[key] < rate, raw[key]), null[key], raw[key])
            for key, rate in self.drop.items()
        }
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
