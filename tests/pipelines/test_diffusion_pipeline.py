"""From a task to images: what an image depends on, what is compiled, how often the network is called, which labels are made."""
import flax.linen as nn
import jax
import numpy as np
import pytest
from toy_task import CLASSES, COUNT, SHAPE, make, parameters

from diffusion_jax.build import ConfigError
from diffusion_jax.models.cond import Nothing
from diffusion_jax.nn import kernels, partition
from diffusion_jax.nn.attention import attention
from diffusion_jax.pipelines.diffusion import conditions, draw, generate
from diffusion_jax.pipelines.recipe import Recipe

PARAMS = parameters(0.1, -0.2, 0.3, 0.05)


def images(recipe, num, batch, seed=0, task=None):
    task = task or make("edm")
    got = list(generate(task, PARAMS, recipe, conditions(task, num), num, seed, batch))
    assert [len(part) for part in got] == [min(batch, num - first) for first in range(0, num, batch)]
    return np.concatenate(got)


@pytest.mark.parametrize(
    "options",
    [dict(sampler="ddim"), dict(sampler="ancestral", guidance=3.0, cads="s=0.5"), dict(sampler="dpmpp_2m_sde", guidance=3.0),
     dict(sampler="edm,s_churn=2")],
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
    seen = []

    def spy(task, recipe, params, raw, index, *rest):
        seen.append((len(index.sharding.device_set), len(raw["label"].sharding.device_set)))
        return np.zeros((len(index), *SHAPE), np.float32)

    monkeypatch.setattr("diffusion_jax.pipelines.diffusion.draw", spy)
    task, devices = make(), len(jax.local_devices())
    for num in (2 * devices, 2 * devices + 1, 1):
        list(generate(task, PARAMS, Recipe(steps=1), conditions(task, num), num, 0))
    assert seen == [(devices, devices), (1, 1), (1, 1)]


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
    monkeypatch.setattr("diffusion_jax.pipelines.diffusion.draw", lower)
    task = make(model=Long(), cond=Nothing(), shape=(32, 32, 8))
    list(generate(task, {"model": {}, "cond": {}}, Recipe(steps=1), {}, 8, 0))
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
    [("ddim", 1.0, 5), ("ddim", 3.0, 5), ("dpmpp_2m", 1.0, 5), ("plms", 1.0, 6), ("heun", 1.0, 9), ("edm", 3.0, 9)],
)
def test_the_network_is_called_once_a_step_and_order(sampler, guidance, calls):
    task = make("cosine", calls=True)
    COUNT.clear()
    images(Recipe(sampler=sampler, steps=5, guidance=guidance), 3, 3, task=task)
    jax.effects_barrier()
    assert list(COUNT) == [3 if guidance == 1 else 6] * calls               # guided: twice the rows, not twice the calls


def test_labels_are_balanced_unless_one_is_asked_for():
    task = make()
    np.testing.assert_array_equal(conditions(task, 7)["label"], [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(conditions(task, 4, label=2)["label"], [2, 2, 2, 2])
    assert conditions(task, 1)["label"].dtype == np.int32


def test_the_label_reaches_the_image():
    got = images(Recipe(steps=4), 3 * CLASSES, 3 * CLASSES, task=make("cosine")).mean(axis=(1, 2, 3)).reshape(3, CLASSES)
    assert (got.mean(0).argsort() == [1, 0, 2]).all()                       # the means are 0.1, -0.2, 0.3


@pytest.mark.parametrize("label", [-1, CLASSES, CLASSES + 1])
def test_labels_that_do_not_exist_are_refused(label):
    with pytest.raises(ConfigError, match=f"label {label} is outside 0 ... 2"):
        conditions(make(), 2, label)


def test_an_unconditional_task_takes_no_label_and_makes_images():
    task = make(cond=Nothing())
    assert conditions(task, 3) == {}
    with pytest.raises(ConfigError, match="takes no label"):
        conditions(task, 3, label=0)
    got = np.concatenate(list(generate(task, PARAMS | {"cond": {}}, Recipe(steps=3), {}, 3, 0, 2)))
    assert got.shape == (3, *SHAPE) and np.isfinite(got).all()
