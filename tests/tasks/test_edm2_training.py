"""Training of EDM2: forced normalisation, averages of what the optimiser made, uncertainty, and scaled losses."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pages import page

from diffusion_jax.data.digits import Digits
from diffusion_jax.diffusion.losses import mean_flat
from diffusion_jax.diffusion.process import EDM
from diffusion_jax.diffusion.scales import EDM as Scale
from diffusion_jax.diffusion.times import LogNormal
from diffusion_jax.models.cond import OneHot
from diffusion_jax.models.edm2 import EDM2, Uncertainty
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.train import ema, shard
from diffusion_jax.train.optim import learning_rate, optimizer
from diffusion_jax.train.state import create
from diffusion_jax.train.step import make_step

MODEL = EDM2(width=8, mults=(1, 2), depth=1, attend=(2,), head_channels=8, channels=1)
TASK = Diffusion(MODEL, OneHot(10, 16), EDM(), Scale(), (8, 8, 1), LogNormal(-0.4, 1.0), uncertainty=Uncertainty(8), forced=True)
ADAM = optimizer("adam", 1e-2, b2=0.99)
EMAS = {"short": ema.Power(0.05)}


def batch():
    records = [Digits("train")[i] for i in range(16)]
    images = np.stack([record["image"] for record in records]).astype(np.float32).reshape(16, 8, 8, 1)
    return {"image": jnp.asarray(images / 127.5 - 1), "label": jnp.asarray([record["label"] for record in records])}


def start(task, **options):
    mesh = shard.make_mesh(devices=jax.devices()[:1])
    state = jax.jit(partial(create, task, ADAM, EMAS))(jax.random.key(0), batch())
    shardings = shard.shardings(mesh, state)
    return make_step(task, ADAM, EMAS, mesh, shardings, **options), jax.device_put(state, shardings)


def rows(params):
    """Every weight of a magnitude-preserving layer, [inputs, outputs]."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf, np.float64).reshape(-1, leaf.shape[-1])
            for path, leaf in leaves if path[-1].key == "weight"}


@pytest.mark.slow
def test_every_row_has_the_official_norm_after_each_of_50_steps():
    step, state = start(TASK)
    raw = batch()
    assert len(rows(state.params)) > 30
    unforced = jax.jit(lambda state, raw, key: optax.apply_updates(state.params, ADAM.update(
        jax.grad(lambda p: TASK.loss(p, None, raw, key, True)[0])(state.params), state.opt_state, state.params)[0]))
    for number in range(50):
        moved = jax.device_get(unforced(state, raw, jax.random.fold_in(jax.random.key(0), number)))
        if number == 0:
            first = moved
        state, _ = step(state, None, raw)
        for name, weight in rows(state.params).items():
            before = np.sqrt(np.mean(rows(moved)[name] ** 2, axis=0))                # x / (eps + rms x): rms x / (eps + rms x)
            found = np.sqrt(np.mean(weight**2, axis=0))
            np.testing.assert_allclose(found, before / (1e-4 + before), rtol=1e-5, err_msg=f"{name} after step {number + 1}")
        if number == 0:                                                              # the average forgets all before step 1
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), jax.device_get(state.ema["short"]), first)


@pytest.mark.slow
def test_a_scaled_loss_trains_the_same_and_reports_the_same():
    (plain, state), (scaled, other), raw = start(TASK), start(TASK, loss_scale=100.0), batch()
    for _ in range(3):
        (state, metrics), (other, same) = plain(state, None, raw), scaled(other, None, raw)
    assert abs(float(metrics["loss"]) / float(same["loss"]) - 1) < 1e-3
    assert abs(float(metrics["grad_norm"]) / float(same["grad_norm"]) - 1) < 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-3), *jax.device_get((state.params, other.params)))


@pytest.mark.slow
def test_float16_trains_with_a_scaled_loss():
    task = Diffusion(**{**vars(TASK), "model": MODEL.clone(dtype="float16")})
    step, state = start(task, loss_scale=100.0)
    raw, seen = batch(), []
    for _ in range(30):
        state, metrics = step(state, None, raw)
        seen.append(float(metrics["mse"]))
    assert np.isfinite(seen).all() and np.mean(seen[-5:]) < 0.7 * np.mean(seen[:5])


@pytest.mark.slow
def test_the_uncertainty_weighs_the_loss_as_the_paper_says():
    raw, params = batch(), jax.jit(TASK.init)(jax.random.key(0), batch())
    sigma, eps = jnp.linspace(0.1, 3.0, 16), jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
    terms = jax.jit(TASK.terms)(params, raw, sigma, eps)
    x0 = raw["image"]
    found = TASK.denoiser(params)(x0 + sigma[:, None, None, None] * eps, sigma, TASK.embed(params, raw), jax.random.key(0)).x0
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2                                  # 2206.00364 table 1, sigma_data 0.5
    u = TASK.uncertainty.apply({"params": params["uncertainty"]}, jnp.log(sigma) / 4)
    np.testing.assert_allclose(terms["loss"], weight * mean_flat((found - x0) ** 2) / jnp.exp(u) + u, rtol=1e-3)


MI, RATES = 2**20, dict(xxs=170, xs=120, s=100, m=90, l=80, xl=70, xxl=65)
IMAGES = {"img512": dict(xxs=2048, xs=2048, s=2048, m=2048, l=1792, xl=1280, xxl=896),
          "img64": dict(xs=1024, s=1024, m=2048, l=1024, xl=640)}
WIDTHS = dict(xxs=64, xs=128, s=192, m=256, l=320, xl=384, xxl=448)


@pytest.mark.parametrize("data,size", [(data, size) for data in IMAGES for size in IMAGES[data]])
def test_the_page_is_the_published_script(data, size):
    """train_edm2.py's presets and the defaults of its loop, in images, on a loss that is summed over the values of an image."""
    small, config = data == "img64", page("imagenet_edm2", f"{data}-{size}")
    values = 64 * 64 * (3 if small else 4)
    assert config.batch == 2048 and config.steps * config.batch == IMAGES[data][size] * MI
    assert config.model.width == WIDTHS[size] and config.model.dropout == (0.1 if size in ("m", "l", "xl", "xxl") else 0.0)
    optim = config.optim
    assert optim.lr == RATES[size] / 1e4 and optim.ref == (35_000 if small else 70_000) and (optim.b1, optim.b2) == (0.9, 0.99)
    assert optim.warmup * config.batch == 10_000_000 and optim.eps * values == pytest.approx(1e-8)
    assert (config.task.times.mean, config.task.times.std) == ((-0.8, 1.6) if small else (-0.4, 1.0))
    assert config.task.scale.sigma_data == 0.5 and config.task.forced and config.task.shape[2] == values // 4096
    assert not config.data.decode.get("flip", False) and "drop" not in config.task
    assert {average.std for average in config.ema.values()} == {0.05, 0.10} and config.snapshots.every * config.batch == 8 * MI
    rate = learning_rate("inverse_sqrt", optim.lr, optim.warmup, ref=optim.ref)
    for step in (0, 1000, 4882, 4883, 35_000, 70_000, 100_000):
        seen = step * 2048
        want = optim.lr / np.sqrt(max(seen / (optim.ref * 2048), 1)) * min(seen / 10e6, 1)
        np.testing.assert_allclose(rate(step), want, rtol=2e-6)


def test_adam_on_a_mean_is_adam_on_a_sum_with_its_eps():
    """Gradients of the size of eps, where it shows."""
    grads = {"w": jnp.asarray([1e-9, 3e-8, 1e-6]) / 64}

    def first(grads, eps):
        method = optimizer("adam", 1e-2, b2=0.99, eps=eps)
        return method.update(grads, method.init(grads), grads)[0]["w"]

    summed = first(jax.tree.map(lambda g: 64 * g, grads), 1e-8)
    np.testing.assert_allclose(first(grads, 1e-8 / 64), summed, rtol=1e-5)
    assert abs(first(grads, 1e-8)[0] / summed[0] - 1) > 0.5
