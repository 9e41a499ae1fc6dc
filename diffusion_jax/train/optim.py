"""Optimisers and learning rates by name, as one optax transformation:

    clip by global norm  ->  adam | adamw | lion | adafactor  ->  + weight_decay w  ->  - lr(t)                          (1)

    constant        lr(t) = lr
    cosine          lr(t) = lr (1 + cos(pi min((t - warmup) / (steps - warmup), 1))) / 2                                 (2)
    inverse_sqrt    lr(t) = lr / sqrt(max(t / ref, 1))                                    (EDM2)                          (3)

each times the linear warm-up min(t / warmup, 1), where t is the number of updates done before this one. Weight decay is decoupled
and scaled by the learning rate (Loshchilov & Hutter 2019), and leaves biases, gains and text towers alone.

References: Kingma & Ba 2015 (adam); Loshchilov & Hutter 2019 (adamw); Chen et al. 2023 (lion); Shazeer & Stern 2018 (adafactor);
Karras et al. 2024 (EDM2).
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.train.powersgd import Compressed
from diffusion_jax.types import Array, Params

DEFAULTS = {"adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8}, "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
            "lion": {"b1": 0.9, "b2": 0.99}, "adafactor": {"eps": 1e-30}}
SCHEDULES = ("constant", "cosine", "inverse_sqrt")
Rate = Callable[[Any], Array]        # number of updates done -> learning rate


class RateState(NamedTuple):
    """State of `scale_by_rate`: updates done, and the learning rate of the last one (which the train step logs)."""

    count: Array
    learning_rate: Array


def learning_rate(schedule: str = "constant", lr: float = 1e-4, warmup: float = 0, steps: int | None = None,
                  ref: int | None = None) -> Rate:
    """The learning rate as a function of the number of updates done.

    Args:
      schedule: 'constant', 'cosine' (2) or 'inverse_sqrt' (3).
      lr: the peak.
      warmup: updates of linear warm-up from 0, perhaps a fraction of one more; 0 for none.
      steps: length of the run in updates, for 'cosine' only.
      ref: updates before the decay begins, for 'inverse_sqrt' only (EDM2: 70,000 at batch 2,048).

    Raises:
      ConfigError: an unknown schedule, or a length that it needs, or cannot use.
    """
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    for option, value, user in (("steps", steps, "cosine"), ("ref", ref, "inverse_sqrt")):
        if (value is not None) != (schedule == user):
            raise ConfigError(f"schedule {schedule!r} {'needs' if schedule == user else 'takes no'} {option!r}")
    if steps is not None and steps <= warmup:
        raise ConfigError(f"a cosine of {steps} steps leaves nothing after a warm-up of {warmup}: raise steps or lower warmup")

    def rate(count: Any) -> Array:
        t = jnp.asarray(count, jnp.float32)
        value = jnp.full_like(t, lr)
        if steps is not None:                               # cosine
            value = value * (1 + jnp.cos(jnp.pi * jnp.clip((t - warmup) / (steps - warmup), 0, 1))) / 2
        if ref is not None:                                 # inverse_sqrt
            value = value / jnp.sqrt(jnp.maximum(t / ref, 1))
        return value * jnp.minimum(t / warmup, 1) if warmup else value

    return rate


def scale_by_rate(rate: Rate) -> optax.GradientTransformation:
    """Multiplies updates by -rate(t), and keeps the rate in the state so that it can be logged."""
    def init(params: Params) -> RateState:
        del params
        return RateState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, RateState]:
        del params
        value = rate(state.count)
        return jax.tree.map(lambda u: (-value * u).astype(u.dtype), updates), RateState(state.count + 1, value)

    return optax.GradientTransformation(init, update)


def optimizer(method: str = "adamw", lr: float = 1e-4, schedule: str = "constant", warmup: float = 0, steps: int | None = None,
              ref: int | None = None, clip: float | None = None, weight_decay: float = 0.0,
              no_decay: tuple[str, ...] = ("bias", "scale", "tower"), b1: float | None = None, b2: float | None = None,
              eps: float | None = None, powersgd: int = 0) -> optax.GradientTransformation | Compressed:
    """The chain (1).

    Args:
      method: 'adam', 'adamw', 'lion' or 'adafactor' (without momentum, steps relative to the weights' size).
      lr, schedule, warmup, steps, ref: see `learning_rate`.
      clip: the largest global gradient norm that passes unscaled; None for no clipping.
      weight_decay: decoupled decay; 'adam' takes none.
      no_decay: parameters are left undecayed when a part of their path is one of these; a frozen text tower (models/text_cond.py)
        gets no gradient, and would only decay.
      powersgd: rank in which gradients are averaged over the data axis (train/powersgd.py), before all else; 0 for plain means.
      b1, b2, eps: None for the method's own: 0.9, 0.999, 1e-8 for adam and adamw; 0.9, 0.99 for lion; eps 1e-30 for adafactor.

    Raises:
      ConfigError: an unknown method or schedule, or an option that the method cannot use.

    Example:
      build(dict(name='diffusion_jax.train.optim:optimizer', method='adam', lr=1e-4, warmup=1000, clip=1.0))
    """
    if method not in DEFAULTS:
        raise unknown("method of the optimizer", method, DEFAULTS)
    given = {key: value for key, value in {"b1": b1, "b2": b2, "eps": eps}.items() if value is not None}
    for key in given:
        if key not in DEFAULTS[method]:
            raise ConfigError(f"{method} takes no {key!r}; it has: {', '.join(DEFAULTS[method])}")
    if method == "adam" and weight_decay:
        raise ConfigError("adam takes no weight_decay: method='adamw' decays")
    parts = [optax.clip_by_global_norm(clip)] if clip is not None else []
    parts.append(_direction(method, **(DEFAULTS[method] | given)))
    if weight_decay:
        parts.append(optax.add_decayed_weights(weight_decay, mask=lambda params: _decayed(params, no_decay)))
    chain = optax.chain(*parts, scale_by_rate(learning_rate(schedule, lr, warmup, steps, ref)))
    return Compressed(chain, powersgd) if powersgd else chain


def partition(parts: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """One optimiser per top-level key of the parameters, in one state: `partition(dict(gen=..., disc=...))` trains a GAN.

    Args:
      parts: top-level key -> transformation. Gradient clipping inside one sees the norm of its own part only.

    Raises:
      ConfigError: the parameters have other top-level keys; a part compresses, which only a whole optimiser can.
    """
    if any(isinstance(part, Compressed) for part in parts.values()):
        raise ConfigError("powersgd compresses the gradients of all parameters: leave it out of the parts of an optimizer")

    def labels(params: Params) -> dict[str, str]:
        if set(params) != set(parts):
            raise ConfigError(f"optimizers for {sorted(parts)}, but the parameters are {sorted(params)}: name one for each")
        return {key: key for key in params}

    return optax.partition({**parts}, labels)


def _direction(method: str, b1: float = 0.0, b2: float = 0.0, eps: float = 0.0) -> optax.GradientTransformation:
    """The method's step at learning rate 1, not yet negated."""
    if method == "lion":
        return optax.scale_by_lion(b1, b2)
    if method == "adafactor":
        factored = optax.scale_by_factored_rms(epsilon=eps)
        return optax.chain(factored, optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())
    return optax.scale_by_adam(b1, b2, eps)


def _decayed(params: Params, no_decay: tuple[str, ...]) -> Params:
    """True for every parameter that decays."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not any(part.key in no_decay for part in path), params)
