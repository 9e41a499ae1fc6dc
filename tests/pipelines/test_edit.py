"""Edits with a network of one line: each end of what is swept, and that a sweep compiles once."""
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.process import bcast
from diffusion_jax.diffusion.samplers import sample, start
from diffusion_jax.diffusion.scales import X0
from diffusion_jax.models.cond import Nothing
from diffusion_jax.pipelines.conditions import conditions
from diffusion_jax.pipelines.edit import Change, Inputs, edit, from_strength, invert, rectangles, switched
from diffusion_jax.pipelines.edit_steps import sweep
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.sampling import generate, per_image
from diffusion_jax.runs.folder import Model
from diffusion_jax.types import Prediction, Process
from pipelines.toy_task import PROCESSES, SHAPE, make, parameters

PARAMS = parameters(0.1, -0.2, 0.3, 0.05)
TASK = make("ddpm")
RECIPE = Recipe(sampler="ddim", steps=6, times="trailing")
IMAGE = np.float32(np.random.RandomState(0).rand(2, *SHAPE) - 0.5)
MODEL = Model(PARAMS, None, TASK)
ZERO, ONE = (conditions(TASK, 2, np.full(2, label)) for label in (0, 1))


@dataclass(frozen=True)
class Exact:
    """As much of a task as an edit needs, with the exact denoiser of pixels N(0, SPREAD^2)."""

    process: Process
    cond = Nothing()
    scale = X0()
    shape, variance, learned_variance = SHAPE, "fixed_small", False

    def embed(self, params, raw):
        return {}

    def denoiser(self, params):
        def denoise(x, t, cond, key):
            a, s = (bcast(value(t), x) for value in (self.process.alpha, self.process.sigma))
            return Prediction(a * SPREAD**2 / (a**2 * SPREAD**2 + s**2) * x)

        return denoise


SPREAD = 0.5


def swept(over, values, raw=ZERO, recipe=RECIPE, **inputs):
    return sweep(MODEL, recipe, raw, 0, over, values, Inputs(**inputs))


def test_a_switch_ends_at_one_condition_or_the_other():
    whole, other = (swept("guidance", [1.0], raw)[0] for raw in (ZERO, ONE))
    rows = swept("switch", [0, 3, 6], second=ONE)
    np.testing.assert_allclose(rows[2], whole, atol=1e-5)
    np.testing.assert_allclose(rows[0], other, atol=1e-5)
    assert np.abs(rows[1] - whole).max() > 1e-3 and np.abs(rows[1] - other).max() > 1e-3


def test_a_switch_at_k_is_two_runs_one_after_the_other():
    times, key, noise = RECIPE.grid(TASK.process), jax.random.key(0), per_image(jnp.arange(2))
    x = start(TASK.process, times, jax.random.split(key, 3)[0], IMAGE.shape, noise)
    sampler = RECIPE.make_sampler(TASK, noise)
    for raw, part in ((ZERO, times[:3]), (ONE, times[2:])):
        x = sample(TASK.denoiser(PARAMS), sampler, x, part, TASK.embed(PARAMS, raw), key)
    np.testing.assert_allclose(swept("switch", [2], second=ONE)[0], x, atol=1e-5)


@pytest.mark.parametrize("name, sampler", [
    ("flow", "heun"),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in (("ddpm", "heun"), ("edm", "edm"), ("ddpm", "dpmpp_2m")))])
def test_the_first_steps_of_a_switch_see_the_first_condition_alone(name, sampler):
    """After k steps x is what the first alone makes of it: a corrector's call is made at the time of the switch."""
    task, recipe = make(name), Recipe(sampler=sampler, steps=6)
    times = recipe.grid(task.process)
    x = start(task.process, times, jax.random.key(0), IMAGE.shape)
    first, second = (task.embed(PARAMS, raw) for raw in (ZERO, ONE))
    own = recipe.make_sampler(task, per_image(jnp.arange(2)))

    def path(cond):
        return sample(task.denoiser(PARAMS), own, x, times, cond, jax.random.key(0), keep=True)

    alone = path(first)
    for k in (1, 3, 6):
        got = path(switched(first, second, times[k]))
        np.testing.assert_allclose(got[:k], alone[:k], atol=1e-6)
        assert k == 6 or np.abs(got[k] - alone[k]).max() > 1e-3


def test_a_mix_ends_at_one_condition_or_the_other():
    rows, half = swept("mix", [0.0, 1.0], second=ONE), swept("mix", [0.5], second=ONE)[0]
    for got, raw in zip(rows, (ZERO, ONE), strict=True):
        np.testing.assert_allclose(got, swept("guidance", [1.0], raw)[0], atol=1e-5)
    assert np.abs(half - rows[0]).max() > 1e-3


def test_strength_leads_from_the_picture_to_a_new_one():
    task, recipe = Exact(PROCESSES["ddpm"]), Recipe(sampler="ddim", steps=40)
    rows = sweep(Model({}, None, task), recipe, {}, 0, "strength", [0.0, 0.3, 1.0], Inputs(image=IMAGE))
    distance = [np.abs(row - IMAGE).mean() for row in rows]
    assert distance[0] < 0.02 < distance[1] < distance[2]
    np.testing.assert_allclose(swept("strength", [1.0], image=IMAGE)[0], swept("guidance", [1.0])[0], atol=1e-5)


LEADING, TRAILING = Recipe(steps=5, times="leading"), Recipe(steps=5, times="trailing")


@pytest.mark.parametrize(("name", "recipe", "strength", "first"), [
    ("ddpm", TRAILING, 0.001, 1), ("ddpm", TRAILING, 0.05, 50), ("ddpm", TRAILING, 0.24, 240), ("ddpm", TRAILING, 0.57, 570),
    ("ddpm", TRAILING, 0.9999, 999), ("ddpm", LEADING, 0.95, 950), ("ddpm", LEADING, 0.0, -1),
    ("ddpm", Recipe(steps=5, times="karras"), 0.2505, 250.5), ("flow", Recipe(steps=5), 0.001, 0.001),
    ("flow", Recipe(steps=5), 0.24, 0.24), ("flow", Recipe(steps=5), 0.0, 0.0), ("edm", Recipe(steps=5), 0.5, 2.5152),
    ("edm", Recipe(steps=5, times="karras"), 0.0, 0.0), ("cosine", Recipe(steps=5, times="log_snr"), 0.3, 0.3)])
def test_a_strength_begins_at_its_own_time(name, recipe, strength, first):
    """And goes on with what is left of the grid."""
    p = PROCESSES[name]
    times = recipe.grid(p)
    got = np.asarray(from_strength(p, jnp.asarray(times), jnp.float32(strength)))
    assert got.dtype == times.dtype and len(got) == len(times)
    np.testing.assert_allclose(got[0], first, rtol=1e-4)
    left = times[times < got[0]] if got[0] <= times[0] else times[1:]
    np.testing.assert_array_equal(got[len(got) - len(left):], left)
    assert (got[: len(got) - len(left)] == got[0]).all()


@pytest.mark.parametrize("sampler", ["ancestral", "heun"] + [
    pytest.param(sampler, marks=pytest.mark.slow) for sampler in ("ddim", "ddim,eta=1", "plms", "dpm_solver,order=3")])
def test_the_noise_of_a_strength_is_that_of_its_time(sampler):
    """Of a denoiser that leaves x0 as it is: what comes back is what one step from there makes of the picture."""
    task = Exact(PROCESSES["ddpm"])
    recipe = Recipe(sampler=sampler, steps=5, times="trailing")
    rows = sweep(Model({}, None, task), recipe, {}, 0, "strength", [0.0, 0.001, 0.03, 0.1], Inputs(image=IMAGE))
    np.testing.assert_array_equal(rows[0], IMAGE)
    moved = [float(np.abs(row - IMAGE).mean()) for row in rows]
    noise = np.asarray(PROCESSES["ddpm"].sigma(jnp.array([1, 30, 100])))
    assert np.isfinite(moved).all() and moved[1] < moved[2] < moved[3]
    assert (moved[1:] < 1.2 * noise).all()                                              # rounded up to 199 all were 0.3


def test_scales_that_are_swept_are_those_of_the_recipe():
    for over, values, own in (("guidance", [-2.0, 3.0], RECIPE), ("phi", [-1.0, 0.7], RECIPE.using(guidance=3.0))):
        before = edit._cache_size()
        rows = swept(over, values, recipe=own)
        assert edit._cache_size() - before <= 1
        for value, row in zip(values, rows, strict=True):
            np.testing.assert_allclose(row, next(generate(MODEL, own.using(**{over: value}), ZERO, 2, 0)), atol=1e-4)


@pytest.mark.parametrize("name", ["ddpm", "flow", "edm"])
def test_inversion_and_the_way_back(name):
    task, recipe = Exact(PROCESSES[name]), Recipe(sampler="ddim", steps=400, times="log_snr" if name == "edm" else "uniform")
    model, (static, strengths) = Model({}, None, task), recipe.split()
    x = invert(model, static, strengths, {}, jnp.asarray(IMAGE))
    back = edit(model, static, strengths, {}, jnp.arange(2), jax.random.key(0), Change(), Inputs(x=x))
    assert np.abs(back - IMAGE).max() < 0.12 * np.abs(IMAGE).max() and np.abs(x - IMAGE).max() > 0.2
    level = np.hypot(task.process.alpha(recipe.grid(task.process)[0]) * SPREAD, task.process.sigma(recipe.grid(task.process)[0]))
    np.testing.assert_allclose(x / level, IMAGE / SPREAD, atol=0.15)         # the exact flow of a Gaussian scales every pixel


def test_inpainting_changes_the_rectangles_alone():
    mask = jnp.asarray(np.repeat(rectangles(SHAPE, [[1, 0, 3, 2]]), 2, axis=0))
    inputs = Inputs(image=jnp.asarray(IMAGE), mask=mask)
    made = np.asarray(edit(MODEL, *RECIPE.split(), ZERO, jnp.arange(2), jax.random.key(0), Change(), inputs))
    np.testing.assert_array_equal(made[:, [0, 3]], IMAGE[:, [0, 3]])
    np.testing.assert_array_equal(made[:, :, 2:], IMAGE[:, :, 2:])
    assert (np.abs(made - IMAGE)[:, 1:3, :2] > 1e-3).mean() > 0.9


def test_what_is_refused():
    for rect in ([0, 0, 5, 1], [1, 1, 1, 2], [0, 0, 1]):
        with pytest.raises(ConfigError, match="is not top,left,bottom,right inside 4x4"):
            rectangles(SHAPE, [rect])
    with pytest.raises(ConfigError, match="no condition that could guide"):
        sweep(Model({}, None, Exact(PROCESSES["ddpm"])), RECIPE, {}, 0, "guidance", [2.0], Inputs(image=IMAGE))
    with pytest.raises(ConfigError, match="op phi rescales guidance, which is 1 here"):
        swept("phi", [0.5])


def test_two_checkpoints_of_one_kind_share_an_edit():
    before = edit._cache_size()
    for means in ((0.1, -0.2, 0.3, 0.05), (0.2, 0.2, -0.3, 0.0)):
        sweep(Model(parameters(*means), None, TASK), RECIPE.using(steps=5), ZERO, 0, "mix", [0.2, 0.4], Inputs(second=ONE))
    assert edit._cache_size() == before + 1
