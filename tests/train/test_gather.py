"""Weights gathered where they are used: the step of weights gathered at once, and only a layer of them at a time."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.nn.conv import Conv
from diffusion_jax.train import shard
from diffusion_jax.train.gather import at_use, split_like
from diffusion_jax.train.state import create, task_of
from diffusion_jax.train.step import make_step

WIDTH, DEPTH = 32, 3
CONFIG = dict(
    model=dict(name="diffusion_jax.models.dit:DiT", patch=2, width=WIDTH, depth=DEPTH, heads=2, channels=1, learn_sigma=False,
               scan=True, remat="dots"),
    task=dict(name="diffusion_jax.tasks.diffusion:Diffusion", shape=(8, 8, 1),
              cond=dict(name="diffusion_jax.models.cond:Label", num_classes=10, width=WIDTH),
              process=dict(name="diffusion_jax.diffusion.process:Flow"),
              scale=dict(name="diffusion_jax.diffusion.scales:Velocity")),
)
RULES = (("(qkv|fc1)/kernel$", ("fsdp", "tensor")), (".*", "fsdp"))


def step_of(gather, mesh):
    task, optimizer = task_of(CONFIG), build(dict(name="diffusion_jax.train.optim:optimizer", method="adam", lr=1e-3))
    rng = np.random.default_rng(0)
    batch = {"image": rng.normal(size=(16, 8, 8, 1)).astype(np.float32), "label": np.arange(16, dtype=np.int32) % 10}
    make = functools.partial(create, task, optimizer, {})
    shapes = jax.eval_shape(make, jax.random.key(0), batch)
    shardings = shard.shardings(mesh, shapes, RULES)
    state = jax.jit(make, out_shardings=shardings)(jax.random.key(0), batch)
    batch = jax.device_put(batch, shard.batch_sharding(mesh))
    return make_step(task, optimizer, {}, mesh, shardings, gather=gather), state, batch


@pytest.mark.slow
def test_the_same_step_in_less_memory():
    found = {}
    for gather in ("step", "use"):
        step, state, batch = step_of(gather, shard.make_mesh(data=2, fsdp=2, tensor=2))
        text = step.lower(state, None, batch).compile().as_text()
        found[gather] = (*step(state, None, batch), text)
    (state, metrics, whole), (other, others, layered) = found["step"], found["use"]
    for name in ("loss", "grad_norm", "update_norm"):
        np.testing.assert_allclose(metrics[name], others[name], rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), state.params, other.params)
    stacked = f"f32[{DEPTH},{WIDTH},{4 * WIDTH // 2}]"                                 # all layers of fc1, gathered over fsdp
    gathers = [[line for line in text.splitlines() if " all-gather" in line and stacked in line.split(" all-gather")[0]]
               for text in (whole, layered)]
    assert gathers[0] and not gathers[1]


class Convolutions(nn.Module):
    """Three of them."""

    @nn.compact
    def __call__(self, x):
        for i in range(3):
            x = nn.silu(Conv(32, name=f"conv_{i}")(x))
        return x


@pytest.mark.parametrize("gather", ["step", "use"])
def test_gradients_of_convolutions_leave_the_images_where_they_are(gather):
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 32)).astype(np.float32)
    params, mesh = Convolutions().init(jax.random.key(0), x)["params"], shard.make_mesh(data=2, fsdp=4)
    shardings = shard.shardings(mesh, params, ((".*", "fsdp"),))

    def loss(params, x):
        return jnp.square(Convolutions().apply({"params": at_use(params, shardings) if gather == "use" else params}, x)).mean()

    def split(params, x):
        if gather == "use":
            return jax.grad(loss)(params, x)
        whole = jax.lax.with_sharding_constraint(params, jax.tree.map(shard.gathered, shardings))
        return jax.tree.map(split_like, jax.grad(loss)(whole, x), shardings)

    given = jax.device_put(params, shardings), jax.device_put(x, shard.batch_sharding(mesh))
    program = jax.jit(split, out_shardings=shardings).lower(*given).compile()
    assert not [kind for kind in ("collective-permute", "all-to-all") if f" {kind}(" in program.as_text()]
    want = jax.grad(lambda params: jnp.square(Convolutions().apply({"params": params}, x)).mean())(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), program(*given), want)


def test_other_words_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'step'"):
        make_step(None, None, {}, None, None, gather="steps")
