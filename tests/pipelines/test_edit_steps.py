"""Edits in parts: the same pictures as in one program, bit for bit; what is counted, and that nothing is compiled again."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.cond import Joint, Label
from diffusion_jax.models.glide import Inpaint
from diffusion_jax.pipelines import edit_steps
from diffusion_jax.pipelines.cascade import Stage
from diffusion_jax.pipelines.conditions import conditions
from diffusion_jax.pipelines.edit import Change, Inputs, edit, invert, rectangles
from diffusion_jax.pipelines.edit_steps import check_values, edited, inverted, steps_of, sweep
from diffusion_jax.pipelines.progress import Pace
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.runs.folder import Model
from pipelines.compilations import compilations
from pipelines.test_progress import Count
from pipelines.toy_task import CLASSES, SHAPE, make, parameters

STEPS = 11
PARAMS = parameters(0.1, -0.2, 0.3, 0.05)
TASK = make("ddpm")
MODEL = Model(PARAMS, None, TASK)
IMAGE = jnp.asarray(np.float32(np.random.RandomState(0).rand(2, *SHAPE) - 0.5))
MASK = jnp.asarray(np.repeat(rectangles(SHAPE, [[1, 0, 3, 2]]), 2, axis=0))
ZERO, ONE = (conditions(TASK, 2, np.full(2, label)) for label in (0, 1))
INDEX, KEY = jnp.arange(2), jax.random.key(3)


class Sees(nn.Module):
    """A network that sees what is known of the picture."""

    @nn.compact
    def __call__(self, x, noise, cond):
        return jnp.tanh(x + cond["cat"][..., : x.shape[-1]]) / 4 + jnp.mean(cond["vec"], axis=-1)[:, None, None, None]


# The same pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("over", "values", "options", "inputs"), [
    ("switch", [0, 3, 11], dict(sampler="heun"), Inputs(second=ONE)),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in (
        ("strength", [0.4, 1.0, 0.0], dict(sampler="ddim,eta=1"), Inputs(image=IMAGE)),
        ("mix", [0.2, 0.9], dict(sampler="ancestral"), Inputs(second=ONE)),
        ("guidance", [-2.0, 3.0], dict(sampler="plms", cads="s=0.5"), Inputs()),
        ("phi", [-1.0, 0.7], dict(sampler="ddim", guidance=3.0), Inputs()))),
], ids=["switch", "strength", "mix", "guidance", "phi"])
def test_a_sweep_in_parts_is_the_sweep_bit_for_bit(over, values, options, inputs):
    """All values but the first, in parts of the same lengths and others, compile nothing."""
    made = functools.partial(sweep, MODEL, Recipe(steps=STEPS, **options), ZERO, 3, over, inputs=inputs)
    want, meter = made(values), Count()
    pace = Pace(meter)
    first = made(values[:1], pace=pace)
    assert meter.done == STEPS
    with compilations() as programs:
        got = first + made(values[1:], pace=pace)
    assert not programs and meter.done == len(values) * STEPS
    for row, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(row, other)


@pytest.mark.slow
def test_long_sums_in_parts_are_rounded_alike_but_for_the_last_digit():
    recipe = Recipe(steps=STEPS, sampler="dpmpp_2m")
    made = functools.partial(sweep, MODEL, recipe, ZERO, 3, "strength", [0.4], Inputs(image=IMAGE))
    np.testing.assert_allclose(made(pace=Pace(Count()))[0], made()[0], atol=1e-7)


def both(model, recipe, raw, inputs, change):
    """An edit in parts, and in one program."""
    edits = (model, *recipe.split(), raw, INDEX, KEY, change, inputs)
    meter = Count()
    got = edited(*edits, Pace(meter))
    assert meter.done == STEPS
    return got, edit(*edits)


@pytest.mark.slow
@pytest.mark.parametrize("sees", [False, True], ids=["pasted", "seen"])
def test_inpainting_in_parts_is_inpainting_bit_for_bit(sees):
    model, change = MODEL, Change(strength=jnp.float32(0.8))
    if sees:
        cond = {"cond": {"parts_0": PARAMS["cond"]}, "model": {}}
        model = Model(cond, None, make(model=Sees(), cond=Joint((Label(CLASSES, 4), Inpaint()))))
    got, want = both(model, Recipe(steps=STEPS, sampler="ancestral"), ZERO, Inputs(image=IMAGE, mask=MASK), change)
    np.testing.assert_array_equal(got, want)
    known = np.broadcast_to(MASK == 1, got.shape)
    np.testing.assert_array_equal(np.asarray(got)[known], np.asarray(IMAGE)[known])
    assert (np.asarray(got)[~known] != np.asarray(IMAGE)[~known]).all()


def test_inversion_in_parts_is_inversion_bit_for_bit_and_leaves_the_picture():
    """And so does the way back with the noise that it starts from: parts take over no array of the caller's."""
    recipe, image, meter = Recipe(steps=STEPS, sampler="ddim"), IMAGE + 0, Count()
    of = (MODEL, *recipe.split(), ZERO)
    x = inverted(*of, image, Pace(meter))
    assert meter.done == STEPS
    np.testing.assert_array_equal(x, invert(*of, image))
    for _ in range(2):
        back, want = both(MODEL, recipe, ZERO, Inputs(x=x), Change())
        np.testing.assert_array_equal(back, want)
    np.testing.assert_array_equal(image, IMAGE)


def test_without_a_pace_an_edit_is_one_program(monkeypatch):
    for name in ("_begin", "_begin_upwards", "_advance"):
        monkeypatch.setattr(edit_steps, name, None)
    of = (MODEL, *Recipe(steps=STEPS, sampler="ddim").split(), ZERO)
    x = inverted(*of, IMAGE)
    assert edited(*of, INDEX, KEY, Change(), Inputs(x=x)).shape == x.shape == IMAGE.shape


@pytest.mark.parametrize(("op", "rows", "want"), [
    ("mix", 3, 3 * (4 + 7)), ("invert", 0, 4 + 7 + 4), ("variations", 2, 4 + 2 * (4 + 7)), ("inpaint", 1, 4 + 7)])
def test_steps_are_those_of_every_row_and_of_the_way_up(op, rows, want):
    assert steps_of([Stage(MODEL, Recipe(steps=steps)) for steps in (4, 7)], op, rows) == want


# What is refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("over", "values", "says"), [
    ("guidance", [], "op guidance needs values"),
    ("phi", [float("nan")], "values of phi are finite numbers: got nan"),
    ("switch", [1.5], "values of switch are numbers of steps, from 0 on: got 1.5"),
    ("switch", [-1], "values of switch are numbers of steps"),
    ("strength", [0.5, 1.1], "values of strength lie in 0 ... 1: got 0.5, 1.1"),
    ("mix", [-0.1], "values of mix lie in 0 ... 1"),
])
def test_values_that_have_no_meaning_are_refused(over, values, says):
    with pytest.raises(ConfigError, match=says):
        check_values(over, values)
