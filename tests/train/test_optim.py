"""Optimisers against optax's own, schedules at known points."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.train import optim

LR = 3e-3


def parameters():
    keys = jax.random.split(jax.random.key(0), 2)
    return {"layer": {"kernel": jax.random.normal(keys[0], (130, 128)), "bias": jax.random.normal(keys[1], (128,))}}


def decays(params):
    return {"layer": {"kernel": True, "bias": False}}


@pytest.mark.parametrize("ours,theirs", [
    (dict(method="adam"), optax.adam(LR)),
    (dict(method="adam", b1=0.0, b2=0.99, eps=1e-6), optax.adam(LR, 0.0, 0.99, 1e-6)),
    (dict(method="adamw", weight_decay=0.1), optax.adamw(LR, weight_decay=0.1, mask=decays)),
    (dict(method="adamw", weight_decay=0.1, no_decay=()), optax.adamw(LR, weight_decay=0.1)),
    (dict(method="lion", weight_decay=0.1), optax.lion(LR, weight_decay=0.1, mask=decays)),
    (dict(method="adafactor"), optax.adafactor(LR)),
    (dict(method="adamw", clip=0.5), optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(LR, weight_decay=0.0))),
    (dict(method="adam", schedule="cosine", warmup=2, steps=6), optax.adam(optax.warmup_cosine_decay_schedule(0.0, LR, 2, 6))),
])
def test_optimizers_are_optaxs(ours, theirs):
    ours = optim.optimizer(**({"lr": LR} | ours))
    params, states = [parameters()] * 2, [ours.init(parameters()), theirs.init(parameters())]
    for t in range(5):
        grads = jax.tree.map(lambda x, t=t: jax.random.normal(jax.random.key(t + x.ndim), x.shape) * 2.0**t, parameters())
        for i, optimizer in enumerate((ours, theirs)):
            updates, states[i] = jax.jit(optimizer.update)(grads, states[i], params[i])
            params[i] = optax.apply_updates(params[i], updates)
    for got, want in zip(*map(jax.tree.leaves, params), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-7)
    assert not np.allclose(jax.tree.leaves(params[0])[1], jax.tree.leaves(parameters())[1], atol=1e-4)


@pytest.mark.parametrize("options,points", [
    (dict(schedule="constant"), {0: 1.0, 10**6: 1.0}),
    (dict(schedule="constant", warmup=10), {0: 0.0, 5: 0.5, 10: 1.0, 11: 1.0}),
    (dict(schedule="cosine", steps=100), {0: 1.0, 25: (2 + 2**0.5) / 4, 50: 0.5, 100: 0.0, 200: 0.0}),
    (dict(schedule="cosine", steps=110, warmup=10), {0: 0.0, 5: 0.5 * (1 + np.cos(0)) / 2, 10: 1.0, 60: 0.5, 110: 0.0}),
    (dict(schedule="inverse_sqrt", ref=100), {0: 1.0, 100: 1.0, 400: 0.5, 10_000: 0.1}),
    (dict(schedule="inverse_sqrt", ref=100, warmup=200), {0: 0.0, 50: 0.25, 200: 2**-0.5, 400: 0.5}),
])
def test_schedules_at_known_points(options, points):
    rate = optim.learning_rate(lr=2.0, **options)
    for step, value in points.items():
        assert abs(rate(jnp.int32(step)) - 2.0 * value) < 1e-5, step


@pytest.mark.parametrize("options,message", [
    (dict(method="adamm"), "did you mean 'adam"), (dict(schedule="cosinus"), "did you mean 'cosine'"),
    (dict(schedule="cosine"), "needs 'steps'"), (dict(schedule="inverse_sqrt"), "needs 'ref'"),
    (dict(steps=5), "takes no 'steps'"),
    (dict(method="adam", weight_decay=0.1), "adamw"), (dict(method="lion", eps=1e-8), "takes no 'eps'"),
    (dict(method="adafactor", b1=0.9), "takes no 'b1'"), (dict(schedule="cosine", steps=5, warmup=5), "raise steps"),
])
def test_what_does_not_fit_raises(options, message):
    with pytest.raises(ConfigError, match=message):
        optim.optimizer(**options)


def test_a_partition_trains_each_part_with_its_own():
    parts = {"gen": {"name": "diffusion_jax.train.optim:optimizer", "method": "adam", "lr": 0.1},
             "disc": {"name": "diffusion_jax.train.optim:optimizer", "method": "lion", "lr": 0.2}}
    optimizer = build({"name": "diffusion_jax.train.optim:partition", "parts": parts})
    params = {"gen": {"kernel": jnp.ones(3)}, "disc": {"kernel": jnp.ones(2)}}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["gen"]["kernel"], -0.1, rtol=1e-5)      # the first step of adam, and every one of lion,
    np.testing.assert_allclose(updates["disc"]["kernel"], -0.2, rtol=1e-5)     # is lr sign(g)
    with pytest.raises(ConfigError, match="'critic'"):
        optimizer.init({"gen": params["gen"], "critic": params["disc"]})
