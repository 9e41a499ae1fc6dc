"""Consistency models of Gaussian data, whose end of the flow is known: nothing is left to learn there; and what is refused."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import process, scales
from diffusion_jax.diffusion.lcm import lcm
from diffusion_jax.diffusion.samplers import sample
from diffusion_jax.diffusion.times import LogNormal, SecondMoment, uniform
from diffusion_jax.models.cond import Label, Nothing
from diffusion_jax.tasks.consistency import Consistency
from diffusion_jax.tasks.diffusion import Diffusion
from tasks.exact import MEAN, SHAPE, STD, Exact, batch, end
from tasks.zero_task import Zero

KEY = jax.random.key(0)
PROCESSES = {"ddpm": process.DDPM("squaredcos"), "cosine": process.Cosine(), "edm": process.EDM(), "flow": process.Flow()}
DDPM, V, FLOW = PROCESSES["ddpm"], scales.V(), PROCESSES["flow"]
TIMES = LogNormal(-0.5, 1.0)


def task(ends=True, **changes):
    options = {"cond": Nothing(), "process": DDPM, "scale": V, "shape": SHAPE, "times": TIMES, "every": 100, "halvings": 12}
    options |= {"model": Exact(DDPM, V, ends)} | changes
    return Consistency(**options)


TEACHER = Diffusion(Exact(DDPM, V, False), Nothing(), DDPM, V, SHAPE)


def weights(error=0.0):
    return {"model": {"error": jnp.float32(error)}, "cond": {}}


def loss_at(t, error, pictures=0, n=8192):
    """(the loss at an error of the network, its slope), after so many pictures."""
    frozen = {"memory": {"pictures": jnp.int32(pictures)}, "teacher": weights()}

    def loss(error):
        return t.loss({"model": {"error": error}, "cond": {}}, frozen, batch(n), KEY, True)[0]

    return [float(value) for value in jax.jit(jax.value_and_grad(loss))(jnp.float32(error))]


@pytest.mark.parametrize("p", PROCESSES.values(), ids=PROCESSES)
def test_a_clean_image_stays_as_it_is_whatever_the_network_says(p):
    x = batch(4)["image"]
    for scale in (scales.V(), scales.Velocity(), scales.EDM()):
        t = task(model=Zero(), process=p, scale=scale)
        params = {"model": {"scale": jnp.full(1, 0.3)}, "cond": {}}
        got = t.denoiser(params)(x, jnp.asarray(p.t_clean, float), {}, KEY).x0
        np.testing.assert_allclose(got, x, atol=1e-6)


@pytest.mark.slow
def test_from_an_exact_teacher_the_end_of_the_flow_has_nothing_to_learn():
    """But for the error of a step, of Heun's third order, per length: halving steps twice divides it by 4^2."""
    t = task(teacher=TEACHER, huber=0.0)
    early, late = (loss_at(t, 0.0, pictures)[0] for pictures in (300, 500))
    assert late < early / 12 and late < 1e-4
    assert loss_at(t, 0.1, 500)[0] > 0.05


@pytest.mark.slow
def test_ddim_is_a_teacher_of_first_order():
    t = task(teacher=TEACHER, huber=0.0, solver="ddim")
    early, late = (loss_at(t, 0.0, pictures)[0] for pictures in (300, 500))
    assert 3 < early / late < 5.5


@pytest.mark.slow
def test_from_pairs_too_it_is_where_the_loss_is_least():
    """Of squared distances, whose mean over all that x_t may come from is the teacher's, in the limit of short steps."""
    t = task(huber=100.0, times=LogNormal(0.3, 0.4))
    slopes = [loss_at(t, error, 800, 2**16)[1] for error in (-0.2, 0.0, 0.2)]
    assert slopes[0] < 0 < slopes[2]
    assert abs(slopes[1]) < 0.1 * min(abs(slopes[0]), slopes[2])


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_its_samples_have_the_distribution_of_the_data(steps):
    t = task(model=Exact(FLOW, scales.Velocity(), True), process=FLOW, scale=scales.Velocity())
    start = jax.random.normal(KEY, (20_000, *SHAPE))
    x = sample(t.denoiser(weights()), lcm(FLOW), start, uniform(FLOW, steps), {}, KEY)
    np.testing.assert_allclose([x.mean(), x.std()], [MEAN, STD], atol=0.01)
    if steps == 1:
        np.testing.assert_allclose(x, end(FLOW, start, jnp.float32(1)), atol=1e-5)


class Told(nn.Module):
    """x0 is what the condition says."""

    @nn.compact
    def __call__(self, x, noise, cond):
        zero = self.param("zero", nn.initializers.zeros, ())
        return zero * x + cond["vec"][:, :1, None, None]


def test_the_teachers_guidance_becomes_the_students():
    """Of x0 = vec, and 0 for the null: a step of DDIM towards 3 vec."""
    cond = Label(2, 1)
    teacher = Diffusion(Told(), cond, FLOW, scales.X0(), SHAPE)
    fresh = teacher.init(KEY, {"image": jnp.zeros((1, *SHAPE)), "label": jnp.zeros(1, int)})
    table = jax.tree.map(lambda x: jnp.array([[0.5], [-0.25], [0.0]]), fresh["cond"])
    params = {**fresh, "cond": table}
    t = task(cond=cond, process=FLOW, scale=scales.Velocity(), teacher=teacher, guidance=3.0, solver="ddim")
    x, now, then = batch(2)["image"], jnp.array([0.8, 0.6]), jnp.array([0.4, 0.3])
    got = t._ahead({"teacher": params}, {"label": jnp.array([0, 1])}, x, now, then)
    goal = 3 * np.array([0.5, -0.25]).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(got, goal + 0.5 * (np.asarray(x) - goal), rtol=1e-5)


def test_steps_get_shorter_with_the_pictures_seen():
    t = task(model=Zero(), every=10, halvings=3)
    params = {"model": {"scale": jnp.zeros(1)}, "cond": {}}
    halvings, pictures = [], jnp.int32(0)
    loss = jax.jit(lambda pictures: t.loss(params, {"memory": {"pictures": pictures}}, batch(8), KEY, True))
    for _ in range(6):
        _, metrics = loss(pictures)
        halvings.append(float(metrics["halvings"]))
        pictures = metrics["memory"]["pictures"]
    assert halvings == [1, 1, 2, 3, 3, 3] and pictures == 30
    assert t.memory()["pictures"] == 0


@pytest.mark.parametrize("changes, says", [
    (dict(scale=scales.X0()), "choose EDM, V or Velocity"),
    (dict(solver="hein"), "did you mean 'heun'"),
    (dict(every=0), "task.every"),
    (dict(times=SecondMoment()), "leave task.times out"),
    (dict(drop={"label": 0.1}), "unknown condition to drop"),
    (dict(teacher=dataclasses.replace(TEACHER, shape=(4, 4, 1))), "choose another"),
    (dict(teacher=dataclasses.replace(TEACHER, cond=Label(3, 4))), "give both one cond"),
])
def test_refusals(changes, says):
    with pytest.raises(ConfigError, match=says):
        task(**changes)


def test_it_is_sampled_by_lcm_alone_and_learns_of_a_teacher_that_is_there():
    t = task(teacher=TEACHER)
    for name in ("lcm", "mypkg.samplers:mine"):
        t.check_sampler(name)
    for name in ("ddim", "heun", "meanflow"):
        with pytest.raises(ConfigError, match="choose sampler 'lcm'"):
            t.check_sampler(name)
    with pytest.raises(ConfigError, match="name its folder in config.teacher"):
        t.loss(weights(), None, batch(2), KEY, True)
