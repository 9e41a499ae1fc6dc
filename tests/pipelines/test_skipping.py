"""Skip-layer guidance of a recipe: what it makes of a network of a closed form, one program for all scales, and refusals."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.process import DDPM
from diffusion_jax.diffusion.samplers import ddim, sample
from diffusion_jax.models.cond import Label
from diffusion_jax.pipelines import sampling
from diffusion_jax.pipelines.conditions import conditions
from diffusion_jax.pipelines.edit import edit
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.sampling import generate, per_image
from diffusion_jax.pipelines.spelling import skip_of
from diffusion_jax.runs.folder import Model
from diffusion_jax.types import Prediction
from pipelines.toy_task import CLASSES, SHAPE, make

STEPS = 8
GAINS = (0.1, 0.3, -0.2)
MEANS = np.array([0.1, -0.2, 0.3, 0.05])


class Tower(nn.Module):
    """x0 = tanh(x) / 4 + mean(vec) + the gains of its blocks."""

    skip: tuple[int, ...] = ()
    depth: int = 3

    @nn.compact
    def __call__(self, x, noise, cond):
        gains = self.param("gains", nn.initializers.ones, (self.depth,))
        sum_of = sum(gains[i] for i in range(self.depth) if i not in self.skip)
        return 0.25 * jnp.tanh(x) + jnp.mean(cond["vec"], axis=-1)[:, None, None, None] + sum_of


TASK = make(cond=Label(CLASSES, 4), model=Tower())
PARAMS = {"model": {"gains": jnp.asarray(GAINS)}, "cond": {"table": jnp.tile(jnp.asarray(MEANS)[:, None], (1, 4))}}
MODEL = Model(PARAMS, None, TASK)


def images(**options):
    recipe = Recipe(steps=STEPS, **options)
    return np.concatenate(list(generate(MODEL, recipe, conditions(TASK, CLASSES), CLASSES, 0)))


def by_hand(scale, active, guidance):
    """DDIM with x0 moved by s times the gain of the block that is passed over, number 1, in the active steps."""
    process = DDPM()
    times = Recipe(steps=STEPS).grid(process)
    means = MEANS[-1] + guidance * (MEANS[:CLASSES] - MEANS[-1]) + sum(GAINS)
    begin = jnp.asarray([times[i] for i in active])

    def denoise(x, t, cond, key):
        x0 = 0.25 * jnp.tanh(x) + jnp.asarray(means)[:, None, None, None]
        return Prediction(x0 + jnp.where(jnp.isin(t, begin), scale * GAINS[1], 0))

    k_start, *_ = jax.random.split(jax.random.key(0), 3)
    x = process.sigma(times[0]) * per_image(jnp.arange(CLASSES))(k_start, (CLASSES, *SHAPE))
    with jax.disable_jit():                                                     # three loops, each another program
        return sample(denoise, ddim(process), x, times, {}, jax.random.key(0))


def test_it_is_added_to_guidance_in_its_steps_by_one_program():
    before = sampling.draw._cache_size()
    for scale in (2.8, -1.0):
        got = images(guidance=3.0, skip=f"layers=1,scale={scale},start=0.2,stop=0.5")
        np.testing.assert_allclose(got, by_hand(scale, [2, 3], 3.0), atol=1e-5)             # 1.6 < i < 4
    assert sampling.draw._cache_size() == before + 1
    np.testing.assert_allclose(images(skip="layers=1,stop=1"), by_hand(2.8, range(1, STEPS), 1.0), atol=1e-5)


def test_edits_have_it_too():
    recipe = Recipe(steps=STEPS, guidance=3.0, skip="layers=1,stop=1")
    raw = conditions(TASK, CLASSES)
    got = edit(MODEL, *recipe.split(), raw, jnp.arange(CLASSES), jax.random.key(0))
    np.testing.assert_allclose(got, by_hand(2.8, range(1, STEPS), 3.0), atol=1e-5)


@pytest.mark.parametrize("text, layers, rest", [
    ("layers=7.8.9", (7, 8, 9), (2.8, 0.01, 0.2)),
    ("layers=7.10", (7, 10), (2.8, 0.01, 0.2)),                                             # two blocks, and no number
    (" layers = 3 , scale=-1,start=0,stop=1", (3,), (-1, 0, 1)),
])
def test_its_text(text, layers, rest):
    skip = skip_of(text)
    assert skip is not None and (skip.layers, (skip.scale, skip.start, skip.stop)) == (layers, rest)
    static, strengths = Recipe(skip=text).split()
    assert skip_of(static.skip) == skip_of(skip.text) and float(strengths.skip) == pytest.approx(rest[0])
    assert Recipe(skip=text).using(skip="").split()[1].skip is None


@pytest.mark.parametrize("text, says", [
    ("7.8.9", "for example 'layers=7.8.9"), ("scale=2", "for example 'layers=7.8.9"), ("layers=a", "for example"),
    ("layers=7,scal=2", "unknown option of skip 'scal': did you mean 'scale'"), ("layers=7,scale=big", "scale of skip"),
    ("layers=7,start=0.5", "exchange them"), ("layers=-1", "for example"),
])
def test_mistakes_in_its_text(text, says):
    with pytest.raises(ConfigError, match=says) as error:
        Recipe(skip=text)
    assert "\n" not in str(error.value)


def test_what_it_does_not_go_with_is_refused():
    with pytest.raises(ConfigError, match="passes over blocks of a transformer, a DiT or an MMDiT, which this model is not"):
        generate(Model(PARAMS, None, make()), Recipe(skip="layers=1"), conditions(TASK, 1), 1, 0)
    with pytest.raises(ConfigError, match=r"names block 3, and this model has 0 ... 2"):
        generate(MODEL, Recipe(skip="layers=1.3"), conditions(TASK, 1), 1, 0)


@pytest.mark.parametrize("text, says", [
    ("layers=1,scale=0", "scale 0 is none"),
    ("layers=1", "from 0.01 to 0.2 of the steps, both excluded, and none of 4 lies there"),
])
def test_what_changes_nothing_is_refused(text, says):
    with pytest.raises(ConfigError, match=says):
        Recipe(steps=4, skip=text).check_changes(["skip"], TASK)
    Recipe(steps=40, skip="layers=1").check_changes(["skip"], TASK)
