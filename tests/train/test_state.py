"""The state before the first update, and tasks from configs."""
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from train_toy import MODULE, Net, Toy, config

from diffusion_jax.build import ConfigError
from diffusion_jax.train import checkpoint, ema, optim
from diffusion_jax.train.state import create, migrated, plain, task_of
from diffusion_jax.types import TrainState

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
        ({"": {**given, "last": {"kernel": jnp.ones(2)}}},
         r"last/kernel is \(2,\), the config's is .*; start from what fits alone \(--config.init.first=FOLDER:first\)"),
        ({"": {**given, "first": {"kernel": jnp.ones(2), "bias": jnp.ones(3)}}}, "; give the page its sizes"),
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


CLIP = {"name": "diffusion_jax.tasks.embedder:Embedder", "components": 8}
TASKS = "diffusion_jax.tasks"


@pytest.mark.parametrize(("old", "new"), [
    ({"name": f"{TASKS}.diffusion:Diffusion", "shape": [64], "drop": {"with_text": 0.1}},
     {"name": f"{TASKS}.prior:DiffusionPrior", "shape": [64], "drop": {"with_text": 0.1}}),
    ({"name": f"{TASKS}.diffusion:Diffusion", "shape": (64,), "first_stage": CLIP},
     {"name": f"{TASKS}.prior:DiffusionPrior", "shape": [64], "first_stage": CLIP}),
    ({"name": f"{TASKS}.autoregressive:Autoregressive", "drop": 0.1, "text_weight": 1.0, "first_stage": CLIP},
     {"name": f"{TASKS}.prior:AutoregressivePrior", "drop": 0.1, "first_stage": CLIP}),
])
def test_priors_of_release_0_1_0_have_tasks_of_their_own_now(old, new):
    config = {"seed": 0, "task": old, "model": {"name": "x"}}
    assert plain(config) == plain(ml_collections.ConfigDict(config)) == config | {"task": new}
    assert migrated(plain(config)) == plain(config)                                     # once is enough


@pytest.mark.parametrize("task", [
    {"name": f"{TASKS}.diffusion:Diffusion", "shape": [8, 8, 1], "first_stage": CLIP},        # a decoder
    {"name": f"{TASKS}.diffusion:Diffusion"},
    {"name": f"{TASKS}.autoregressive:Autoregressive", "text_weight": 1.0},
    {"name": f"{TASKS}.autoregressive:Autoregressive", "first_stage": {"name": f"{TASKS}.dvae:DiscreteVAE"}},
    "nothing of the kind", None,
])
def test_other_tasks_stay_as_they_are(task):
    assert migrated({"task": task}) == {"task": task}


def test_anything_may_be_asked_to_migrate():
    assert migrated([]) == [] and migrated({}) == {} and migrated({"task": {"shape": 3}}) == {"task": {"shape": 3}}


def test_an_old_page_of_a_prior_is_a_prior_once_its_clip_is_joined_in():
    """As training does it: `plain`, then the CLIP's task in the place of its folder, then `task_of`."""
    towers = {"name": "diffusion_jax.models.clip:CLIP", "image": None,
              "text": {"name": "diffusion_jax.models.clip:TextTower", "features": 6, "vocab": 9, "context": 5, "width": 8,
                       "layers": 1, "heads": 2}}
    clip = {"name": f"{TASKS}.clip:Contrastive", "model": towers, "shape": [4, 4, 1]}
    page = plain({
        "model": {"name": "diffusion_jax.models.prior_ar:ARPrior", "length": 4, "context": 5},
        "task": {"name": f"{TASKS}.autoregressive:Autoregressive", "drop": 0.1}, "first_stage": "runs/clip",
    })
    assert page["task"]["name"].endswith(":Autoregressive")                   # nothing tells yet that it is one
    joined = {**page, "task": {**page["task"], "first_stage": CLIP | {"clip": clip, "empty": [7, 8, 0], "components": 4}}}
    task = task_of(joined)
    assert type(task).__name__ == "AutoregressivePrior" and task.drop == 0.1 and task.first_stage.components == 4


def test_a_run_of_release_0_1_0_is_no_other_config_to_the_new_page(tmp_path):
    old = {"task": {"name": f"{TASKS}.diffusion:Diffusion", "shape": [64]}}
    new = {"task": {"name": f"{TASKS}.prior:DiffusionPrior", "shape": [64]}}
    state = TrainState(step=jnp.int32(3), params={"w": jnp.ones(2)}, opt_state=(), ema={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "plain", lambda config: config)               # as that release wrote it
        with checkpoint.Checkpoints(tmp_path, old) as checkpoints:
            checkpoints.save(state)
    with checkpoint.Checkpoints(tmp_path, new) as checkpoints:
        assert checkpoints.latest == 3
    assert checkpoint.config_of(tmp_path) == new
