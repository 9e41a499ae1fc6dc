"""The state before the first update, and tasks from configs."""
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from train_toy import MODULE, Net, Toy, config

from diffusion_jax.build import ConfigError
from diffusion_jax.train import ema, optim
from diffusion_jax.train.state import create, plain, task_of

EMAS = {"a": ema.Constant(0.9), "b": ema.Power(0.1)}


def test_create_jitted_is_a_fresh_state_with_copies():
    task, optimizer = Toy(Net()), optim.optimizer()
    state = jax.jit(lambda key: create(task, optimizer, EMAS, key, {}))(jax.random.key(3))
    want = task.init(jax.random.key(3), {})
    assert state.step == 0 and state.step.dtype == jnp.int32 and set(state.ema) == {"a", "b"}
    for tree in (state.params, *state.ema.values()):
        for got, expected in zip(*map(jax.tree.leaves, (tree, want)), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-6)
    for tree in state.ema.values():
        for got, expected in zip(*map(jax.tree.leaves, (tree, state.params)), strict=True):
            np.testing.assert_array_equal(got, expected)
            assert got.unsafe_buffer_pointer() != expected.unsafe_buffer_pointer()      # each is donated
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(optimizer.init(want))


def test_it_starts_from_all_or_from_some_of_given_parameters():
    task, optimizer, key = Toy(Net()), optim.optimizer(), jax.random.key(3)
    drawn, given = (task.init(jax.random.key(seed), {}) for seed in (3, 4))
    whole = create(task, optimizer, EMAS, key, {}, {"": given})
    part = create(task, optimizer, EMAS, key, {}, {"first": {**given["first"], "more": jnp.ones(1)}})
    for path, leaf in jax.tree.leaves_with_path(given):
        of = {name: dict(jax.tree.leaves_with_path(tree))[path] for name, tree in dict(whole=whole.params, part=part.params,
                                                                                       drawn=drawn).items()}
        np.testing.assert_array_equal(of["whole"], leaf)
        np.testing.assert_array_equal(of["part"], leaf if path[0].key == "first" else of["drawn"])
    for initial, message in (
        ({"": {**given, "more": jnp.ones(1)}}, "no more"), ({"": {"first": given["first"]}}, "missing"),
        ({"frist": given["first"]}, "did you mean 'first'"), ({"first": {"kernel": jnp.ones(2)}}, "initial"),
    ):
        with pytest.raises(ConfigError, match=message):
            create(task, optimizer, EMAS, key, {}, initial)


def test_an_average_may_not_be_called_params():
    with pytest.raises(ConfigError, match="'params'"):
        create(Toy(Net()), optim.optimizer(), {"params": ema.Constant(0.9)}, jax.random.key(0), {})


def test_parameters_are_nested_dicts():
    class Tuples(Toy):
        def init(self, key, batch):
            return {"a": (jnp.ones(2),)}

    with pytest.raises(TypeError, match=r"'a'"):
        create(Tuples(Net()), optim.optimizer(), {}, jax.random.key(0), {})


def test_task_of_a_config_in_either_form():
    assert task_of(config()) == task_of(ml_collections.ConfigDict(config())) == Toy(Net(16, 2), noise=0.1)


@pytest.mark.parametrize("bad,message", [
    ({"model": {}}, "no 'task'"), (config(task={"name": "os:system"}), "os:system"),
    (config(task={"name": f"{MODULE}:Toy", "nois": 0.1}), "did you mean 'noise'"),
])
def test_bad_configs_raise(bad, message):
    with pytest.raises(ConfigError, match=message):
        task_of(bad)


def test_plain_is_json():
    assert plain(ml_collections.ConfigDict({"a": {"b": (1, 2)}})) == {"a": {"b": [1, 2]}}
    with pytest.raises(ConfigError, match="JSON"):
        plain({"a": jnp.ones})
