"""Factors that are trained beside weights that stay."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from pages import page
from stubs import random_params

from diffusion_jax.build import ConfigError
from diffusion_jax.models.cond import Joint, Label
from diffusion_jax.tasks.lora import BASE, LowRank, adapted
from diffusion_jax.train.state import plain, task_of

BATCH = {"image": jnp.zeros((2, 8, 8, 1)), "label": jnp.zeros(2, jnp.int32), "tokens": jnp.zeros((2, 8), jnp.int32)}
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def digits():
    """(the task of a tiny page, drawn parameters that no layer leaves out)."""
    task = task_of(plain(page("digits")))
    return task, random_params(task, BATCH, scale=0.1)


def test_before_the_first_update_the_loss_is_that_of_the_base_exactly(digits):
    task, base = digits
    low = LowRank(task, rank=2, alpha=8.0)
    factors = low.init(KEY, BATCH)

    @jax.jit
    def losses(base, factors, batch):
        return task.loss(base, None, batch, KEY, True)[0], low.loss(factors, {BASE: base}, batch, KEY, True)[0]

    rng = np.random.default_rng(1)
    one, other = losses(base, factors, BATCH | {"image": jnp.asarray(rng.normal(size=(2, 8, 8, 1)), jnp.float32)})
    assert one == other and one > 0


def test_only_the_factors_are_trained_and_what_it_is_the_task_says(digits):
    task, _ = digits
    low = adapted(task, {"lora": {"rank": 2, "alpha": 8.0, "layers": "mlp", "base": 7}})
    factors = jax.eval_shape(low.init, KEY, BATCH)
    shapes = {path: leaf.shape for path, leaf in flatten_dict(factors, sep="/").items()}
    assert shapes["model/blocks/mlp/fc1/kernel/down"] == (1, 32, 2) and len(shapes) == 4
    assert (low.noun, low.needs, low.num_classes, low.shape) == (task.noun, task.needs, task.num_classes, task.shape)
    assert low.scale == 4.0 and LowRank(task, rank=8).scale == 1.0 and low.project(factors) is factors
    assert adapted(task, {}) is task and hash(low) == hash(LowRank(task, 2, 8.0, "mlp"))


def test_a_frozen_text_tower_has_nothing_to_train():
    task = task_of(plain(page("stable_diffusion")))
    shapes = jax.eval_shape(task.init, KEY, BATCH)
    for layers in ("qkv", "tower"):
        with pytest.raises(ConfigError, match="of a frozen text tower, where no gradient is: begin it with .model"):
            LowRank(task, layers=layers).check(shapes)
    LowRank(task, layers="^model").check(shapes)
    config = plain(page("stable_diffusion"))
    config["task"]["cond"]["frozen"] = False
    LowRank(task_of(config), layers="qkv").check(shapes)
    nested = task_of(plain(page("stable_diffusion")))
    joined = task.__class__(**{**vars(nested), "cond": Joint((Label(3, 4), nested.cond))})
    with pytest.raises(ConfigError, match="cond/parts_1/tower/transformer/blocks_0"):
        LowRank(joined, layers="qkv").check({"cond": {"parts_0": {}, "parts_1": shapes["cond"]}, "model": shapes["model"]})


@pytest.mark.parametrize("name, says", [
    ("digits_edm2", "magnitude-preserving layers normalise"), ("digits_classifier", "a LoRA is of a diffusion model"),
])
def test_other_tasks_are_refused(name, says):
    with pytest.raises(ConfigError, match=says):
        LowRank(task_of(plain(page(name))))
