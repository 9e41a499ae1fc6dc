"""Pictures as they arise: when they are looked at, and that the last look is what one scan makes."""
import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines import stream
from diffusion_jax.pipelines.conditions import conditions
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.sampling import Guides, generate
from diffusion_jax.pipelines.stream import generated, walked, watched
from diffusion_jax.runs.folder import Model
from diffusion_jax.tasks.classifier import NoisyClassifier
from pipelines.compilations import compilations
from pipelines.test_progress import Count
from pipelines.toy_task import CLASSES, PROCESSES, SHAPE, Brightness, make, parameters

PARAMS = parameters(0.1, -0.2, 0.3, 0.05)
OTHER = parameters(0.3, 0.2, -0.1, 0.0)
CLASSIFIER = Model({"model": {"slope": np.float32([-9, 0, 9])}}, None,
                   NoisyClassifier(Brightness(CLASSES), PROCESSES["cosine"], SHAPE))


def images(recipe, guides=Guides()):
    task = make("cosine")
    return next(generate(Model(PARAMS, None, task), recipe, conditions(task, 3), 3, 0, 3, guides))


def looks(recipe, every, guides=Guides(), params=PARAMS, name="cosine", num=3):
    task = make(name)
    return list(watched(Model(params, None, task), recipe, conditions(task, num), num, 0, every, guides))


@pytest.mark.parametrize(("steps", "every", "want"), [
    (7, 3, [1, 4, 7]), (4, 9, [4]),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in (
        (6, 1, [1, 2, 3, 4, 5, 6]), (6, 3, [3, 6]), (8, 5, [3, 8]), (5, 5, [5])))])
def test_looks_are_every_so_many_steps_and_the_last_is_at_the_end(steps, every, want):
    with jax.disable_jit():
        assert [step for step, _ in looks(Recipe(steps=steps), every)] == want


@pytest.mark.parametrize("options", [
    dict(sampler="dpmpp_2m", guidance=3.0, phi=0.5),
    *(pytest.param(options, marks=pytest.mark.slow) for options in (
        dict(), dict(sampler="ancestral", cads="s=0.5", guidance=2.0), dict(sampler="plms"), dict(plus_plus=True)))], ids=str)
def test_the_last_look_is_what_generate_makes(options):
    recipe = Recipe(steps=7, **options)
    _, last = looks(recipe, 3)[-1]
    np.testing.assert_allclose(last, images(recipe), atol=1e-5)


def test_what_guides_is_watched_too():
    recipe = Recipe(steps=4, guidance=2.0, classifier_scale=30.0)
    guides = Guides(CLASSIFIER, Model(OTHER, None, make("cosine")))
    want = images(recipe, guides)
    np.testing.assert_allclose(looks(recipe, 3, guides)[-1][1], want, atol=1e-5)


@pytest.mark.parametrize("every", [1, 3, 5])
def test_a_denoiser_that_knows_the_image_shows_it_at_every_look(every):
    """x0 = m ramp whatever x is."""
    exact = parameters(0.1, -0.2, 0.3, 0.05, gain=0.0)
    want = np.array([0.1, -0.2, 0.3])[:, None, None, None] * np.linspace(0.5, 1.5, 4)[None, :, None, None] * np.ones(SHAPE)
    with jax.disable_jit():
        for _, x0 in looks(Recipe(steps=7, sampler="heun"), every, params=exact):
            np.testing.assert_allclose(x0, want, atol=1e-5)


def test_looks_are_no_less_than_a_step_apart():
    for every in (0, -3, 1.5, float("nan"), "2", True, None):
        with pytest.raises(ConfigError, match="every is "):
            looks(Recipe(steps=4), every)


def test_looks_of_two_checkpoints_and_scales_share_their_programs():
    looks(Recipe(steps=6, guidance=2.0), 3)
    before = stream._begin._cache_size(), stream._advance._cache_size()
    looks(Recipe(steps=6, guidance=5.0), 3, params=OTHER)
    assert (stream._begin._cache_size(), stream._advance._cache_size()) == before


# Paths ----------------------------------------------------------------------------------------------------------------------


def places(recipe, every, name="cosine", params=PARAMS):
    task = make(name)
    return list(walked(Model(params, None, task), recipe, conditions(task, 3), 3, 0, every))


@pytest.mark.parametrize("options", [
    dict(), dict(sampler="ancestral", cads="s=0.5", guidance=2.0), dict(sampler="heun"),
    pytest.param(dict(sampler="dpmpp_2m", phi=0.5, guidance=3.0), marks=pytest.mark.slow)], ids=str)
def test_a_path_ends_in_what_generate_makes_bit_for_bit(options):
    recipe = Recipe(steps=7, **options)
    path = places(recipe, 3)
    assert [place.step for place in path] == [0, 3, 6, 7]
    np.testing.assert_array_equal(path[-1].x, images(recipe))
    assert path[-1].x0 is path[-1].x


@pytest.mark.parametrize("sampler", ["ddim", "heun", pytest.param("ddim,eta=1", marks=pytest.mark.slow)])
def test_x0_of_a_path_is_what_the_network_takes_its_x_for(sampler):
    """x0 = tanh(x) / 4 + m ramp, and of the flow alpha is 1 - t and sigma t."""
    mean = np.array([0.1, -0.2, 0.3])[:, None, None, None] * np.linspace(0.5, 1.5, 4)[None, :, None, None]
    path = places(Recipe(steps=5, sampler=sampler), 1, "flow")
    for place in path[:-1]:
        np.testing.assert_allclose(place.x0, np.tanh(place.x) / 4 + mean, atol=1e-5)
    times = np.array([1, 0.8, 0.6, 0.4, 0.2, 0])
    for values, want in zip(list(zip(*path, strict=True))[1:4], (times, 1 - times, times), strict=True):
        assert values == pytest.approx(want, abs=1e-5)


# Counts ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    dict(sampler="dpmpp_2m", guidance=3.0, phi=0.5),
    *(pytest.param(options, marks=pytest.mark.slow)
      for options in (dict(), dict(sampler="ancestral", cads="s=0.5", guidance=2.0)))], ids=str)
def test_counted_steps_make_the_same_images_bit_for_bit(options):
    """In parts of one step, two, four ... as in one program of all; of two batches, the second of which compiles nothing."""
    recipe, task, meter = Recipe(steps=11, **options), make("cosine"), Count()
    model, raw = Model(PARAMS, None, task), conditions(task, 5)
    want = list(generate(model, recipe, raw, 5, 0, 3))
    batches = generated(model, recipe, raw, 5, 0, 3, meter=meter)
    first = next(batches)
    assert meter.done == 11
    with compilations() as programs:
        got = [first, *batches]
    assert meter.done == 22 and not programs and [len(part) for part in got] == [3, 2]
    for part, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(part, other)


def test_looks_of_any_distance_are_of_one_program():
    recipe = Recipe(steps=9)
    looks(recipe, 3)
    with compilations() as programs:
        for every in (2, 4, 9):
            looks(recipe, every)
    assert not programs


def test_without_a_meter_a_batch_is_one_program(monkeypatch):
    monkeypatch.setattr(stream, "_begin", None)
    task = make("cosine")
    assert len(list(generated(Model(PARAMS, None, task), Recipe(steps=3), conditions(task, 3), 3, 0, 3))) == 1
