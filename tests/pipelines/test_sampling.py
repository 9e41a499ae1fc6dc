"""From a task to images: what an image depends on, what is compiled, how often the network is called."""
import inspect

import flax.linen as nn
import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.cond import Nothing
from diffusion_jax.nn import kernels, partition
from diffusion_jax.nn.attention import attention
from diffusion_jax.pipelines.conditions import conditions
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.sampling import Guides, draw, generate, remarked, to_pixels
from diffusion_jax.runs.folder import Model
from diffusion_jax.tasks.classifier import NoisyClassifier
from pipelines.toy_task import CLASSES, COUNT, PROCESSES, SHAPE, Brightness, make, parameters

PARAMS = parameters(0.1, -0.2, 0.3, 0.05)


def images(recipe, num, batch, seed=0, task=None, params=PARAMS, guides=Guides()):
    task = task or make("edm")
    got = list(generate(Model(params, None, task), recipe, conditions(task, num), num, seed, batch, guides))
    assert [len(part) for part in got] == [min(batch, num - first) for first in range(0, num, batch)]
    return np.concatenate(got)


@pytest.mark.parametrize(
    "options",
    [dict(sampler="ancestral", guidance=3.0, cads="s=0.5"),
     *(pytest.param(options, marks=pytest.mark.slow) for options in (
         dict(sampler="ddim"), dict(sampler="dpmpp_2m_sde", guidance=3.0), dict(sampler="edm,s_churn=2")))],
    ids=lambda options: options["sampler"],
)
def test_an_image_depends_on_its_number_and_seed_only(options):
    recipe = Recipe(steps=4, **options)
    whole = images(recipe, 16, 16)                                          # on all devices
    assert whole.shape == (16, *SHAPE)
    np.testing.assert_allclose(images(recipe, 5, 3), whole[:5], atol=1e-5)  # on one; the last batch is filled up
    distances = np.abs(whole[:, None] - whole[None]).mean(axis=(2, 3, 4)) + np.eye(16)
    assert distances.min() > 0.01
    assert np.abs(images(recipe, 16, 16, seed=1) - whole).mean(axis=(1, 2, 3)).min() > 0.01


def test_batches_of_many_devices_are_those_of_one():
    recipe = Recipe(steps=3, sampler="ancestral")
    np.testing.assert_allclose(images(recipe, 13, 8), images(recipe, 13, 9), atol=1e-5)


def test_batches_lie_on_all_devices_where_they_divide(monkeypatch):
    devices_of = []

    def spy(model, recipe, strengths, raw, index, *rest):
        devices_of.append((len(index.sharding.device_set), len(raw["label"].sharding.device_set)))
        return np.zeros((len(index), *SHAPE), np.float32)

    monkeypatch.setattr("diffusion_jax.pipelines.sampling.draw", spy)
    task, devices = make(), len(jax.local_devices())
    for num in (2 * devices, 2 * devices + 1, 1):
        list(generate(Model(PARAMS, None, task), Recipe(steps=1), conditions(task, num), num, 0))
    assert devices_of == [(devices, devices), (1, 1), (1, 1)]


class Long(nn.Module):
    """Attention over all pixels."""

    @nn.compact
    def __call__(self, x, noise, cond):
        q = x.reshape(len(x), 1, -1, x.shape[-1])
        return attention(q, q, q).reshape(x.shape)


def test_a_kernel_knows_the_devices_that_share_the_images(monkeypatch):
    """Of TPUs' kernel, which XLA cannot split: it is lowered for the batch of each of eight devices."""
    lowered = []

    def lower(*args):
        lowered.append(draw.trace(*args).lower(lowering_platforms=("tpu",)).as_text())
        return np.zeros((8, 32, 32, 8), np.float32)

    monkeypatch.setattr(kernels, "current", lambda: ("tpu", partition.mesh()))
    monkeypatch.setattr("diffusion_jax.pipelines.sampling.draw", lower)
    task = make(model=Long(), cond=Nothing(), shape=(32, 32, 8))
    list(generate(Model({"model": {}, "cond": {}}, None, task), Recipe(steps=1), {}, 8, 0))
    assert "tpu_custom_call" in lowered[0] and "1x1x1024x128" in lowered[0]


def test_guidance_scales_share_a_program():
    task, before = make("flow"), draw._cache_size()
    made = [images(Recipe(steps=2, guidance=w, schedule="power_cosine"), 3, 3, task=task) for w in (0.0, 0.5, 3.0, -1.0, 7.25)]
    assert draw._cache_size() == before + 1
    assert len({one.tobytes() for one in made}) == 5
    images(Recipe(steps=2, schedule="power_cosine"), 3, 3, task=task)
    assert draw._cache_size() == before + 2                                 # no guidance: half the cost, another program
    images(Recipe(steps=2, guidance=3.0, schedule="power_cosine"), 3, 3, seed=5, task=task)
    assert draw._cache_size() == before + 2


@pytest.mark.parametrize(
    ("sampler", "guidance", "calls"),
    [("ddim", 3.0, 5), ("plms", 1.0, 6), ("heun", 1.0, 9),
     *(pytest.param(*row, marks=pytest.mark.slow) for row in (("ddim", 1.0, 5), ("dpmpp_2m", 1.0, 5), ("edm", 3.0, 9)))],
)
def test_the_network_is_called_once_a_step_and_order(sampler, guidance, calls):
    task = make("cosine", calls=True)
    COUNT.clear()
    images(Recipe(sampler=sampler, steps=5, guidance=guidance), 3, 3, task=task)
    jax.effects_barrier()
    assert list(COUNT) == [3 if guidance == 1 else 6] * calls               # guided: twice the rows, not twice the calls


@pytest.mark.parametrize("options", [{}, pytest.param(dict(phi=0.7, cads="s=0.1", keep_parallel=0.5), marks=pytest.mark.slow)],
                         ids=["plain", "mixed"])
def test_halves_of_guidance_one_after_the_other_are_the_same_pictures(options):
    task = make("cosine", calls=True)
    both = images(Recipe(steps=5, guidance=3.0, **options), 3, 3, task=task)
    jax.effects_barrier()
    COUNT.clear()
    halves = images(Recipe(steps=5, guidance=3.0, cfg_batch=1, **options), 3, 3, task=task)
    jax.effects_barrier()
    assert list(COUNT) == [3] * 10                                          # twice the calls, not twice the rows
    np.testing.assert_allclose(halves, both, rtol=1e-5, atol=1e-6)


def test_halves_are_refused_where_there_are_none():
    with pytest.raises(ConfigError, match="cfg_batch .--cfg_batch. is of guidance, which is 1 here"):
        Recipe(cfg_batch=1).check_changes({"cfg_batch": 1}, make())
    with pytest.raises(ConfigError, match="cfg_batch .--cfg_batch. is of guidance by one network"):
        Recipe(guidance=2.0, cfg_batch=1).check(make("cosine"), weak=True)


def test_the_label_reaches_the_image():
    got = images(Recipe(steps=4), 3 * CLASSES, 3 * CLASSES, task=make("cosine")).mean(axis=(1, 2, 3)).reshape(3, CLASSES)
    assert (got.mean(0).argsort() == [1, 0, 2]).all()                       # the means are 0.1, -0.2, 0.3


def test_an_unconditional_task_takes_no_label_and_makes_images():
    task = make(cond=Nothing())
    assert conditions(task, 3) == {}
    with pytest.raises(ConfigError, match="takes no label"):
        conditions(task, 3, np.zeros(3, int))
    got = np.concatenate(list(generate(Model(PARAMS | {"cond": {}}, None, task), Recipe(steps=3), {}, 3, 0, 2)))
    assert got.shape == (3, *SHAPE) and np.isfinite(got).all()


# What travels ---------------------------------------------------------------------------------------------------------------


OTHER = parameters(0.3, 0.2, -0.1, 0.0)


def classifier(slope, name="cosine", shape=SHAPE):
    task = NoisyClassifier(Brightness(CLASSES), PROCESSES[name], shape)
    return Model({"model": {"slope": np.float32(slope)}}, None, task)


def test_two_checkpoints_of_one_kind_share_a_program():
    task, before = make("cosine"), draw._cache_size()
    made = [images(Recipe(steps=2), 3, 3, task=task, params=params) for params in (PARAMS, OTHER)]
    weak = [images(Recipe(steps=2, guidance=2.0), 3, 3, task=task, guides=Guides(weak=Model(params, None, task)))
            for params in (PARAMS, OTHER)]
    assert draw._cache_size() == before + 2
    assert np.abs(made[0] - made[1]).max() > 0.1 and np.abs(weak[0] - weak[1]).max() > 0.1
    same = make("cosine")                                                       # equal, but another object
    assert same is not task
    images(Recipe(steps=2), 3, 3, task=same, params=OTHER)
    assert draw._cache_size() == before + 2


def test_scales_of_the_classifier_and_phi_share_a_program():
    task, before = make("cosine"), draw._cache_size()
    made = []
    for w, phi, pull in ((2.0, 0.5, 1.0), (2.0, 0.7, 1.0), (3.0, 0.5, 1.0), (2.0, 0.5, 40.0), (-1.0, -0.5, -40.0)):
        recipe = Recipe(steps=2, guidance=w, phi=phi, classifier_scale=pull)
        made.append(images(recipe, 3, 3, task=task, guides=Guides(classifier([-9, 0, 9]))))
    images(Recipe(steps=2, guidance=2.0, phi=0.5), 3, 3, task=task, guides=Guides(classifier([9, 1, 1])))
    assert draw._cache_size() == before + 1
    assert len({one.tobytes() for one in made}) == 5


def test_strengths_of_cads_share_a_program():
    task, before = make("cosine"), draw._cache_size()
    texts = ("s=0.1", "s=0.25,psi=0.5", "s=0", "psi=0,tau1=0.6")
    made = [images(Recipe(steps=2, cads=text), 3, 3, task=task) for text in texts]
    assert draw._cache_size() == before + 1
    assert len({one.tobytes() for one in made}) == 4
    images(Recipe(steps=2, cads="s=0.1,tau1=0.2"), 3, 3, task=task)
    assert draw._cache_size() == before + 2                                 # another clock: another program


def test_draw_is_narrow():
    assert len(inspect.signature(draw).parameters) <= 8


def test_a_model_is_a_pytree_of_arrays_whose_task_is_static():
    model = Model(PARAMS, {"table": np.ones(3)}, make())
    assert len(jax.tree.leaves(model)) == len(jax.tree.leaves(PARAMS)) + 1
    doubled = jax.tree.map(lambda leaf: 2 * leaf, model)
    assert doubled.task is model.task and float(doubled.params["model"]["gain"]) == 0.5
    assert model.frozen == {"first_stage": model.first} and model.replace(first=None).frozen is None


# Guides ---------------------------------------------------------------------------------------------------------------------


def test_a_weak_model_of_the_null_condition_is_classifier_free_guidance():
    null = Model(parameters(*[0.05] * 4), None, make("cosine"))
    for recipe in (Recipe(steps=3, guidance=3.0), Recipe(steps=3, guidance=3.0, keep_parallel=0.0, sampler="heun")):
        got = images(recipe, 3, 3, task=make("cosine"), guides=Guides(weak=null))
        np.testing.assert_allclose(got, images(recipe, 3, 3, task=make("cosine")), atol=2e-5)


def test_a_classifier_pulls_towards_its_label():
    """It takes bright pictures for class 2 and dark ones for class 0, whatever class 1 is."""
    recipe = Recipe(steps=5, classifier_scale=30.0)
    plain, pulled = (images(recipe, 3, 3, task=make("cosine"), guides=guides).mean(axis=(1, 2, 3))
                     for guides in (Guides(), Guides(classifier([-9, 0, 9]))))
    assert pulled[2] > plain[2] + 0.01 and pulled[0] < plain[0] - 0.01


@pytest.mark.parametrize(("options", "guides", "says"), [
    (dict(guidance=2.0), dict(weak=Model(PARAMS, None, make(shape=(8, 8, 2)))), "the weak model makes images of .8, 8, 2."),
    (dict(), dict(weak=Model(PARAMS, None, make())), "a weak model .--weak. is what guidance leads away from"),
    (dict(), dict(guide=classifier([0, 1, 2], shape=(2, 2, 2))), "the classifier sees images of .2, 2, 2."),
], ids=["weak shape", "weak unguided", "classifier shape"])
def test_what_guides_must_fit_the_model(options, guides, says):
    task = make()
    with pytest.raises(ConfigError, match=says):
        generate(Model(PARAMS, None, task), Recipe(**options), conditions(task, 2), 2, 0, 2, Guides(**guides))


def test_starts_name_the_batches_to_make():
    task = make("cosine")
    model, raw = Model(PARAMS, None, task), conditions(task, 8)
    whole = images(Recipe(steps=2), 8, 3, task=task)
    parts = list(generate(model, Recipe(steps=2), raw, 8, 0, 3, starts=[6, 0]))
    np.testing.assert_array_equal(parts[0], whole[6:])
    np.testing.assert_array_equal(parts[1], whole[:3])


def test_pixels_of_what_is_not_finite_are_refused():
    np.testing.assert_array_equal(to_pixels(np.array([-2.0, -1, 0, 1, 3])), [0, 0, 128, 255, 255])
    with pytest.raises(ConfigError, match="the samples are not finite"):
        to_pixels(np.array([0.0, np.nan]))


@pytest.mark.parametrize(("pictures", "count"), [
    (np.random.default_rng(0).normal(size=(4, 8, 8, 3)), 4),                                     # pure noise
    (np.stack([np.zeros((8, 8, 3)), np.full((8, 8, 3), 80.0)]), 1),
    (np.random.default_rng(0).uniform(-1.3, 1.3, (4, 8, 8, 3)), 0),                              # a decoder's overshoot
    (np.concatenate([np.full((2, 8, 8, 1), 9.0), np.zeros((2, 8, 8, 31))], axis=-1), 0),          # few values
    (np.zeros((2, 8, 8, 1)), 0),
])
def test_pictures_far_out_of_range_are_said_once(pictures, count, capsys):
    batches = [np.zeros((2, *pictures.shape[1:])), pictures, pictures]
    got = list(remarked(iter(batches)))
    np.testing.assert_array_equal(np.concatenate(got), np.concatenate(batches))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(count)
    assert all(line.startswith(f"warning: {count} of {len(pictures)} pictures leave [-1, 1] by far") for line in lines)
