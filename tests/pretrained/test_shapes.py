"""Shapes of networks whose equal blocks are traced once are those of `jax.eval_shape`, and nothing of them is ever run."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import page

from diffusion_jax.build import build
from diffusion_jax.pretrained import shapes
from diffusion_jax.pretrained.shapes import shapes_of, tracing_once
from diffusion_jax.train.state import plain, task_of

KEY = jax.random.key(0)
X = jnp.zeros((2, 4))


class Block(nn.Module):
    features: int
    bias: bool = True

    @nn.compact
    def __call__(self, x, gate=None):
        x = nn.Dense(self.features, use_bias=self.bias)(x)
        return x if gate is None else x * gate


class Tower(nn.Module):
    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for i, features in enumerate(self.features):
            x = Block(features, bias=i != 1)(x, x.mean() if i == 2 else None)
        return x


class Shared(nn.Module):
    """One block that is called twice, one that a module inside holds, one that makes statistics."""

    @nn.compact
    def __call__(self, x):
        block = Block(4)
        x = block(block(x))
        return nn.BatchNorm(use_running_average=False)(Holder(block)(x))


class Holder(nn.Module):
    block: Block

    @nn.compact
    def __call__(self, x):
        return self.block(x) + nn.Dense(4)(x)


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)


@pytest.mark.parametrize("model", [Tower((4, 4, 4, 4)), Tower((4, 8, 4, 8)), Tower((3, 3, 3)), Shared(), Block(5)], ids=repr)
def test_small_modules(model):
    for x in (X, jnp.zeros((3, 4)), jnp.zeros((2, 4), jnp.bfloat16)):
        for _ in range(2):
            same(shapes_of(model.init_with_output, KEY, x), jax.eval_shape(model.init_with_output, KEY, x))
    variables = jax.eval_shape(model.init, KEY, X)
    for params in (variables, jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, jnp.bfloat16), variables)):
        for _ in range(2):
            same(
                shapes_of(lambda params: model.apply(params, X, mutable="batch_stats"), params),
                jax.eval_shape(lambda params: model.apply(params, X, mutable="batch_stats"), params),
            )


PAGES = ("digits", "digits_adm", "digits_glide", "digits_edm2", "digits_clip", "digits_vae", "digits_dalle")


@pytest.mark.parametrize("name", [
    name if name in ("digits", "digits_clip", "digits_vae") else pytest.param(name, marks=pytest.mark.slow) for name in PAGES])
def test_every_kind_of_network(name):
    config = plain(page(name))
    task, tokenizer = task_of(config), build(config["data"]["decode"]).tokenizer
    batch = {"image": np.zeros((2, *task.shape), np.float32), "label": np.zeros(2, np.int32)}
    if tokenizer is not None:
        batch["tokens"] = np.zeros((2, len(tokenizer(""))), np.int32)
    if name == "digits_dalle":
        batch["codes"] = np.zeros((2, task.model.grid**2), np.int32)
    params = shapes_of(task.init, KEY, batch)
    same(params, jax.eval_shape(task.init, KEY, batch))


def test_equal_blocks_are_traced_once(monkeypatch):
    monkeypatch.setattr(shapes, "_calls", {})
    calls = []

    class Counted(nn.Module):
        size: int

        @nn.compact
        def __call__(self, x):
            calls.append(self.name)
            return nn.Dense(self.size)(x)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i in range(5):
                x = Counted(4, name=f"block_{i}")(x)
            return Counted(3)(x)

    params = shapes_of(Net().init, KEY, X)["params"]
    assert calls == ["block_0", "Counted_0"]
    assert params["block_0"] == params["block_4"] and len(params) == 6


def test_nothing_that_was_traced_for_shapes_is_run():
    model = Tower((4, 4, 4, 4))
    params = model.init(KEY, X)
    apply = jax.jit(model.apply)
    x = jax.random.normal(KEY, X.shape)
    with tracing_once():
        for _ in range(2):
            jax.eval_shape(lambda: apply(params, x))
    np.testing.assert_allclose(apply(params, x), model.apply(params, x), rtol=1e-5)
    assert np.abs(apply(params, x)).max() > 0


def test_a_wrong_input_is_an_error_each_time():
    for _ in range(2):
        with pytest.raises(TypeError):
            shapes_of(Tower((4, 4)).init, KEY, "x")
        shapes_of(Tower((4, 4)).init, KEY, X)
