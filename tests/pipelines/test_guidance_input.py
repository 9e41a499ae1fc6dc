"""Networks that are told the weight of guidance: one call a step, the recipe's guidance, and no second prediction."""
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.process import DDPM
from diffusion_jax.diffusion.samplers import ddim, sample
from diffusion_jax.diffusion.times import uniform
from diffusion_jax.models.cond import Joint, Label
from diffusion_jax.models.guidance_weight import GuidanceWeight
from diffusion_jax.pipelines import sampling
from diffusion_jax.pipelines.conditions import conditions, conditions_of
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.request import Request
from diffusion_jax.pipelines.sampling import Guides, generate, per_image
from diffusion_jax.runs.folder import Model
from diffusion_jax.types import Prediction
from pipelines.toy_task import CLASSES, COUNT, SHAPE, TokenMean, make

TASK = make(cond=Joint((Label(CLASSES, 4), GuidanceWeight(6, width=4))), calls=True)
BATCH = {"image": jnp.zeros((1, *SHAPE)), "label": jnp.zeros(1, jnp.int32)}
MODEL = Model(jax.tree.map(np.asarray, TASK.init(jax.random.key(3), BATCH)), None, TASK)
NAMES = ("phi", "schedule", "interval", "channels", "keep_parallel")


def images(guidance, guides=Guides()):
    return np.concatenate(list(generate(MODEL, Recipe(steps=3, guidance=guidance), conditions(TASK, 3), 3, 0, 3, guides)))


def told(weight):
    """The same by hand: x0 = tanh(x) / 4 + mean(vec) ramp of a DDIM that nothing guides."""
    weights = MODEL.params["cond"]
    angle = 1000 * (weight - 1) * 10000.0 ** (-np.arange(3) / 2)
    first, second = (weights["parts_1"][name] for name in ("fc1", "fc2"))
    h = np.concatenate([np.sin(angle), np.cos(angle)]) @ first["kernel"] + first["bias"]
    vec = h / (1 + np.exp(-h)) @ second["kernel"] + second["bias"]
    means = np.mean(weights["parts_0"]["table"][:CLASSES] + vec, axis=1)
    ramp = np.linspace(0.5, 1.5, SHAPE[0])[None, :, None, None]
    process = DDPM()
    k_start, *_ = jax.random.split(jax.random.key(0), 3)
    noise = per_image(jnp.arange(3))(k_start, (3, *SHAPE))
    times = uniform(process, 3)
    x = float(process.sigma(times[0])) * noise

    def denoise(x, t, cond, key):
        return Prediction(0.25 * jnp.tanh(x) + jnp.asarray(means)[:, None, None, None] * ramp)

    return sample(denoise, ddim(process), x, times, {}, jax.random.key(0))


def test_guidance_is_what_the_network_is_told_in_one_call_a_step():
    COUNT.clear()
    before = sampling.draw._cache_size()
    made = {weight: images(weight) for weight in (4.0, 7.5)}
    jax.effects_barrier()
    assert list(COUNT) == [3] * 6 and sampling.draw._cache_size() == before + 1   # never twice the rows; one program
    for weight, got in made.items():
        np.testing.assert_allclose(got, told(weight), atol=2e-3)
    assert np.abs(made[4.0] - made[7.5]).max() > 0.02
    np.testing.assert_allclose(images(1.0), told(1.0), atol=2e-3)                 # none is told as well


@pytest.mark.parametrize("name", [*NAMES, "plus_plus"])
def test_what_mixes_two_predictions_is_refused(name):
    values = dict(phi=0.5, schedule="dynamic_cfg", interval="0.1,2", channels=1, keep_parallel=0.5, plus_plus=True)
    with pytest.raises(ConfigError, match=rf"{name} \(--{name}\) is of guidance by a second prediction.*leave it out"):
        Recipe(guidance=3.0, **{name: values[name]}).check_changes([name], TASK)


def test_a_weak_model_and_a_negative_text_are_refused():
    with pytest.raises(ConfigError, match="weak .* is of guidance by a second prediction"):
        images(3.0, Guides(weak=MODEL))
    run = SimpleNamespace(task=make(cond=Joint((TokenMean(5), GuidanceWeight(6, width=1)))))
    with pytest.raises(ConfigError, match="negative .* is of guidance by a second prediction"):
        conditions_of(run, Request("a", negative="b"), 1)
