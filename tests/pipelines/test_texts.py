"""Text towers run once for a text: how often they run, the same bits, what is forgotten, what leaves the device."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import process, scales
from diffusion_jax.models.text_cond import TowerText
from diffusion_jax.pipelines import texts
from diffusion_jax.pipelines.pipeline import Pipeline, pipeline
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.request import Request
from diffusion_jax.runs.folder import Model, Run
from diffusion_jax.tasks.diffusion import Diffusion

RUNS: list[int] = []
"""The rows of every run of a tower."""
WIDTH = 2**17


class Tower(nn.Module):
    """Tokens [B, L] -> [B, L, 3], and a large table that it looks into."""

    @nn.compact
    def __call__(self, tokens):
        jax.debug.callback(RUNS.append, len(tokens))
        table = self.param("table", nn.initializers.normal(1.0), (WIDTH, 3))
        return jnp.sin(table[tokens])


class Net(nn.Module):
    """The mean of the tokens' states beside half of x."""

    @nn.compact
    def __call__(self, x, noise, cond):
        gain = self.param("gain", nn.initializers.constant(0.5), ())
        return gain * x + jnp.mean(cond["seq"], axis=(1, 2))[:, None, None, None]


class Letters:
    """A tokenizer of letters."""

    def __call__(self, text, truncate=True):
        return np.array([ord(letter) for letter in f"{text:4s}"[:4]], np.int32)

    def count(self, text):
        return len(text)


@pytest.fixture(scope="module")
def run():
    """A model of texts in memory."""
    cond = TowerText(Tower(), empty=(1, 2, 3), context=4)
    task = Diffusion(Net(), cond, process.Flow(), scales.X0(), (4, 4, 1), drop=FrozenDict(tokens=0.1))
    batch = {"image": jnp.zeros((1, 4, 4, 1)), "tokens": jnp.zeros((1, 4), jnp.int32)}
    return Run("run", 0, "params", {}, Model(task.init(jax.random.key(0), batch), None, task))


@pytest.fixture
def pipe(run, monkeypatch):
    """It samples in three steps, with guidance; no tower has run."""
    monkeypatch.setattr(Run, "tokenizer", Letters())
    monkeypatch.setattr(Run, "tokens", lambda self, prompts, truncate=False: np.stack([Letters()(text) for text in prompts]))
    made = Pipeline(run, Recipe(guidance=2.0, steps=3))
    jax.effects_barrier()
    RUNS.clear()
    return made


def towers():
    """How often a tower has run since it was last asked."""
    jax.effects_barrier()
    count = len(RUNS)
    RUNS.clear()
    return count


def test_a_prompt_that_is_asked_for_again_runs_no_tower(pipe):
    first = pipe("a", num=3, seed=0).images
    assert towers() == 2                                                       # the prompt, and the empty text
    pipe("a", num=5, seed=1)
    pipe.using(steps=4)("a")
    assert towers() == 0
    np.testing.assert_array_equal(pipe("a", num=3, seed=0).images, first)
    pipe(["a", "b"], num=2)
    assert towers() == 1
    pipe(Request("a", negative="b"))
    assert towers() == 0                                                       # what is led away from is a text like others


def test_pictures_are_the_same_bits_with_texts_from_before_and_close_to_those_of_one_program(pipe):
    again = pipe(["b", "a"], num=2, seed=3).images
    np.testing.assert_array_equal(pipe("a", num=2, seed=3).images.shape, again[2:].shape)
    raw = pipe.conditions(Request("a"), 4, 3)
    plain = {"tokens": np.asarray(raw["tokens"])}
    made, whole = (np.concatenate(list(pipe.images(each, 4, 3))) for each in (raw, plain))
    np.testing.assert_allclose(made, whole, atol=1e-5)


def test_other_weights_and_the_oldest_texts_are_embedded_anew(run, pipe):
    few = texts.Texts(most=2)
    rows = {text: {"tokens": Letters()(text)[None]} for text in "abc"}
    for text, expected in (("a", 1), ("b", 1), ("a", 0), ("c", 1), ("a", 0), ("b", 1)):
        few.ready(run.model, rows[text], False)
        assert towers() == expected, text
    other = Model(jax.tree.map(jnp.copy, run.model.params), None, run.model.task)
    few.ready(other, rows["b"], False)
    assert towers() == 1


def test_rows_are_taken_from_a_table_and_lie_nowhere():
    rows = texts.Rows(np.arange(6.0).reshape(2, 3), np.array([1, 0, 1, 1]))
    assert len(rows) == 4 and rows.shape == (4, 3)
    np.testing.assert_array_equal(rows[np.array([0, 1])], [[3, 4, 5], [0, 1, 2]])
    np.testing.assert_array_equal(np.asarray(rows)[2], [3, 4, 5])


def on_device():
    """Bytes of arrays on the device."""
    return sum(array.nbytes for array in jax.live_arrays())


def test_offloaded_towers_are_not_on_the_device(run, pipe):
    want = pipe("a", num=2, seed=5).images
    tower = WIDTH * 3 * 4
    params = jax.tree.map(jnp.copy, run.model.params)
    held = Pipeline(run._replace(model=Model(params, None, run.model.task)), pipe.recipe)
    del params
    before = on_device()
    held = texts.offloaded(held)
    made = held("a", num=2, seed=5).images
    assert before - on_device() == pytest.approx(tower, rel=0.01)
    np.testing.assert_array_equal(made, want)
    assert held.texts.network(held.run.model).params["cond"] == {}


def test_offload_is_refused_where_there_is_no_tower(folders):
    with pytest.raises(ConfigError, match="this model has none, leave it out"):
        texts.offloaded(pipeline(folders.label))
