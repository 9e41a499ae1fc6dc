"""Guidance on a linear network and on Gaussian data, where every result is known."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian
from golden_routines.replay import record

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import guidance, process, samplers, scales
from diffusion_jax.diffusion.guidance import CADS, CFG, Autoguidance, Clip, Gradient, Known, Mix, Threshold, chain
from diffusion_jax.types import Prediction

P, EPS = process.DDPM(), scales.Eps()
KEY, T = jax.random.key(0), jnp.int32(600)
X = jax.random.normal(jax.random.key(1), (2, 3, 3, 4))
COND = {"vec": jax.random.normal(jax.random.key(2), (2, 4)), "seq": jax.random.normal(jax.random.key(3), (2, 5, 4))}
NULL = {name: jnp.zeros_like(value) for name, value in COND.items()}


def network(x, label, cond):
    return 0.3 * x + cond["vec"][:, None, None] * jnp.cos(x) + label[:, None, None, None] / 1000


DENOISE = scales.denoiser(network, P, EPS)


def at(guide, denoise=DENOISE, cond=COND, t=T, key=KEY):
    return guide(denoise)(X, t, cond, key)


def eps_of(p):
    return guidance.eps_of(P, p.x0, X, T)


def eps(cond):
    """The bare network's output."""
    return network(X, jnp.full(len(X), 600.0), cond)


# Two predictions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, scales.Eps(), scales.V(), scales.Velocity()], ids=["x0", "eps", "v", "velocity"])
def test_cfg_is_affine_and_so_the_same_in_every_space(scale):
    want = eps(NULL) + 3.5 * (eps(COND) - eps(NULL))
    mix = Mix(space=(P, scale) if scale else None)
    np.testing.assert_allclose(eps_of(at(CFG(3.5, NULL, mix))), want, rtol=1e-3, atol=1e-4)


def test_cfg_special_scales():
    np.testing.assert_allclose(at(CFG(1.0, NULL)).x0, at(chain()).x0, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(at(CFG(0.0, NULL)).x0, at(chain(), cond=NULL).x0, rtol=1e-5, atol=1e-5)


def test_a_traced_scale_compiles_once_and_calls_the_network_once():
    calls = []

    def counted(x, label, cond):
        calls.append(x.shape)
        return network(x, label, cond)

    denoise = scales.denoiser(counted, P, EPS)
    run = jax.jit(lambda w: CFG(w, NULL)(denoise)(X, T, COND, KEY).x0)
    found = [run(w) for w in (-1.0, 0.0, 1.0, 4.0, 7.5)]
    assert calls == [(4, 3, 3, 4)]                                # one trace, 2B rows
    np.testing.assert_allclose(found[3], at(CFG(4.0, NULL)).x0, rtol=1e-4, atol=1e-4)


def test_cfg_with_a_time_per_sample():
    t = jnp.array([100, 900])
    found = at(CFG(2.0, NULL), t=t).x0
    for row in range(2):
        np.testing.assert_allclose(found[row], at(CFG(2.0, NULL), t=t[row]).x0[row], rtol=1e-4, atol=1e-4)


def test_rescale_restores_the_standard_deviation():
    found = eps_of(at(CFG(7.5, NULL, Mix(phi=1.0, space=(P, EPS)))))
    np.testing.assert_allclose(found.std((1, 2, 3), ddof=1), eps(COND).std((1, 2, 3), ddof=1), rtol=1e-4)
    half = eps_of(at(CFG(7.5, NULL, Mix(phi=0.5, space=(P, EPS)))))
    plain = eps_of(at(CFG(7.5, NULL)))
    np.testing.assert_allclose(half, (found + plain) / 2, rtol=1e-3, atol=1e-3)


def test_projection():
    c, n = eps(COND), eps(NULL)
    dot = lambda a, b: (a * b).sum((1, 2, 3))  # noqa: E731
    orthogonal = guidance.mix_outputs(c, n, 2.0, Mix(remove_parallel=True)) - c
    np.testing.assert_allclose(dot(orthogonal, c), 0, atol=1e-3)
    parallel = guidance.parallel_part(c - n, c)
    np.testing.assert_allclose(parallel + orthogonal, c - n, atol=1e-5)
    np.testing.assert_allclose(parallel, (dot(c - n, c) / dot(c, c))[:, None, None, None] * c, rtol=1e-5)
    kept = guidance.mix_outputs(c, n, 3.0, Mix(remove_parallel=True, keep_parallel=1.0))
    np.testing.assert_allclose(kept, guidance.mix_outputs(c, n, 3.0, Mix()), rtol=1e-5, atol=1e-5)


def test_guided_channels():
    found = eps_of(at(CFG(4.0, NULL, Mix(channels=3, space=(P, EPS)))))
    np.testing.assert_allclose(found[..., :3], (4 * eps(COND) - 3 * eps(NULL))[..., :3], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found[..., 3:], eps(COND)[..., 3:], rtol=1e-4, atol=1e-5)


def test_cfg_plus_plus_keeps_the_null_eps():
    found = at(CFG(0.6, NULL, Mix(plus_plus=True, space=(P, EPS))))
    np.testing.assert_allclose(found.eps, eps(NULL), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.x0, at(CFG(0.6, NULL)).x0, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="space"):
        at(CFG(0.6, NULL, Mix(plus_plus=True)))


def test_autoguidance_is_cfg_when_the_weak_model_ignores_its_condition():
    weak = lambda x, t, cond, key: DENOISE(x, t, NULL, key)  # noqa: E731
    np.testing.assert_allclose(at(Autoguidance(3.0, weak)).x0, at(CFG(3.0, NULL)).x0, rtol=1e-5, atol=1e-5)


# Over time ------------------------------------------------------------------------------------------------------------------


def test_schedules():
    u = jnp.array([0.0, 0.5, 0.6, 0.75, 0.9, 1.0])
    np.testing.assert_allclose(guidance.annealing(u, 0.6, 0.9), [1, 1, 1, 0.5, 0, 0], atol=1e-6)
    np.testing.assert_allclose(guidance.dynamic_cfg(4.0, lambda t: t, 0.6, 0.9)(u), [4, 4, 4, 2, 0, 0], atol=1e-5)
    cosine = guidance.power_cosine(4.4, lambda t: t, 4.0)(jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(cosine, [4.4, 1 + 3.4 * (1 - np.cos(np.pi / 16)) / 2, 1], rtol=1e-5)
    clock = guidance.progress(np.array([999, 600, 300, 10, -1]))
    np.testing.assert_array_equal(clock(jnp.array([999, 600, 300, 10, -1])), [1, 0.75, 0.5, 0.25, 0])
    with pytest.raises(ConfigError, match="tau1 must be below tau2"):
        guidance.annealing(u, 0.9, 0.6)


def test_an_interval_guides_inside_and_saves_the_call_outside():
    rows = []

    def counted(x, label, cond):
        record(rows, jnp.zeros(len(x)))
        return network(x, label, cond)

    levels = np.asarray(P.sigma(jnp.array([300, 600])) / P.alpha(jnp.array([300, 600])))
    inside = guidance.interval(CFG(5.0, NULL), P, *levels)
    scheduled = CFG(guidance.in_interval(5.0, P, *levels), NULL)
    run = jax.jit(inside(scales.denoiser(counted, P, EPS)))
    for t in (299, 300, 301, 600, 601):
        np.testing.assert_allclose(
            run(X, jnp.int32(t), COND, KEY).x0, at(scheduled, t=jnp.int32(t)).x0, rtol=1e-3, atol=1e-3, err_msg=str(t)
        )
    jax.effects_barrier()
    assert [len(r[0]) for r in rows] == [2, 2, 4, 4, 2]           # low < level <= high


def test_an_interval_carries_what_only_its_inside_makes():
    plus = guidance.interval(CFG(0.6, NULL, Mix(plus_plus=True, space=(P, EPS))), P, 1e3, 1e4)
    np.testing.assert_allclose(at(plus).eps, eps(COND), rtol=1e-4, atol=1e-4)
    gradient = guidance.interval(Gradient(lambda x, t, cond: x.sum((1, 2, 3)), 1.0), P, 1e3, 1e4)
    np.testing.assert_array_equal(at(gradient).grad, 0)


# CADS -----------------------------------------------------------------------------------------------------------------------


def seen(guide, key=KEY, u=1.0, cond=COND):
    """What the network is shown when the clock stands at u."""
    shown = {}

    def denoise(x, t, cond, key):
        shown.update(cond)
        return Prediction(x)

    at(guide(lambda t: jnp.float32(u)), denoise, cond, key=key)
    return shown


def test_cads_is_clean_at_the_end_and_pure_noise_at_the_start():
    for name in COND:
        np.testing.assert_allclose(seen(CADS, u=0.3)[name], COND[name], atol=1e-5)
    fresh = partial(CADS, s=2.0, rescale=False)
    one, other = seen(fresh, cond=COND), seen(fresh, cond=NULL)
    for name in COND:
        np.testing.assert_array_equal(one[name], other[name])      # nothing of the condition is left
        assert 1 < jnp.std(one[name]) < 3


def test_cads_rescaling_is_exact():
    found = seen(partial(CADS, s=0.25), u=0.8)
    for name, axes in (("vec", (1,)), ("seq", (1, 2))):
        assert float(jnp.abs(found[name] - COND[name]).max()) > 0.1
        np.testing.assert_allclose(found[name].mean(axes), COND[name].mean(axes), atol=1e-5)
        np.testing.assert_allclose(found[name].std(axes, ddof=1), COND[name].std(axes, ddof=1), rtol=1e-5)


def test_cads_psi_mixes():
    full, none, half = (seen(partial(CADS, s=0.25, psi=psi), u=0.8)["seq"] for psi in (1.0, 0.0, 0.5))
    np.testing.assert_allclose(half, (full + none) / 2, atol=1e-5)
    np.testing.assert_allclose(none, seen(partial(CADS, s=0.25, rescale=False), u=0.8)["seq"], atol=1e-6)


@pytest.mark.parametrize("statistics", ["sample", "batch"])
def test_cads_statistics(statistics):
    other = {name: value.at[1].multiply(3.0) for name, value in COND.items()}
    guide = partial(CADS, statistics=statistics, psi=1.0)
    same = jnp.allclose(seen(guide, u=0.8)["seq"][0], seen(guide, u=0.8, cond=other)["seq"][0], atol=1e-6)
    assert bool(same) == (statistics == "sample")


def test_cads_survives_a_constant_condition():
    flat = {"vec": jnp.ones((2, 4))}
    assert jnp.isfinite(seen(partial(CADS, s=0.0), cond=flat)["vec"]).all()
    np.testing.assert_allclose(seen(CADS, u=0.0, cond=flat)["vec"], 1)


def test_cads_draws_afresh_and_leaves_the_null_clean():
    one, other = (seen(CADS, key=jax.random.key(k))["vec"] for k in (1, 2))
    assert not jnp.allclose(one, other)
    shown = seen(lambda unit: chain(CADS(unit, keys=("seq",)), CFG(2.0, NULL)))
    np.testing.assert_array_equal(shown["seq"][2:], NULL["seq"])
    np.testing.assert_array_equal(shown["vec"], jnp.concatenate([COND["vec"], NULL["vec"]]))


def test_cads_refuses_what_it_would_not_do():
    with pytest.raises(ConfigError, match="did you mean 'sample'"):
        CADS(P.unit, statistics="sampel")
    with pytest.raises(ConfigError, match=r"vec or seq of a condition, this one is \['cat'\]"):
        seen(CADS, cond={"cat": X})


# Gradients ------------------------------------------------------------------------------------------------------------------

DATA, TAU = Gaussian(), 0.4


def evidence(x, t, cond):
    """log p(y | x_t) of y = x0 + TAU n, up to a constant."""
    a = P.alpha(t)
    left = DATA.std**2 * P.sigma(t) ** 2 / DATA.width(P, t) ** 2          # the variance of x0 given x_t
    return -((cond["y"] - DATA.x0(P, x, t)) ** 2).sum(-1) / (2 * (left + TAU**2)) + 0 * a


@pytest.mark.parametrize("t", [50, 400, 900])
def test_a_classifiers_gradient_gives_the_posterior(t):
    t, x, y = jnp.int32(t), jnp.linspace(-1, 1, 6).reshape(2, 3), jnp.full((2, 3), 0.2)
    guided = Gradient(evidence, 1.0)(DATA.denoiser(P))(x, t, {"y": y}, KEY)
    x0, eps = samplers.resolve(P, guided, x, t)
    a, s = P.alpha(t), P.sigma(t)
    precision = 1 / DATA.std**2 + (a / s) ** 2 + 1 / TAU**2              # three sources on x0: prior, x_t and y
    want = (DATA.mean / DATA.std**2 + a * x / s**2 + y / TAU**2) / precision
    np.testing.assert_allclose(x0, want, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(a * x0 + s * eps, x, rtol=1e-4, atol=1e-4)


def test_gradients_add_up():
    log_prob = lambda x, t, cond: -(x**2).sum((1, 2, 3)) / 2  # noqa: E731
    np.testing.assert_allclose(at(chain(Gradient(log_prob, 2.0), Gradient(log_prob, 3.0))).grad, -5 * X, rtol=1e-5)
    times = jnp.array([1, 2])
    scaled = at(Gradient(log_prob, lambda t: t.astype(jnp.float32)), t=times).grad
    np.testing.assert_allclose(scaled, -times[:, None, None, None] * X, rtol=1e-5)


def test_a_folded_gradient_can_be_clipped():
    log_prob = lambda x, t, cond: 50 * (x**2).sum((1, 2, 3))  # noqa: E731
    pulled = Gradient(log_prob, 1.0)
    want, _ = samplers.resolve(P, at(pulled), X, T)
    folded = at(chain(guidance.Fold(P), pulled))
    np.testing.assert_allclose(folded.x0, want, rtol=1e-5)
    assert folded.grad is None and jnp.abs(want).max() > 10
    np.testing.assert_allclose(at(chain(Clip(), guidance.Fold(P), pulled)).x0, jnp.clip(want, -1, 1), rtol=1e-5)
    np.testing.assert_array_equal(at(guidance.Fold(P)).x0, at(chain()).x0)


# On x0 ----------------------------------------------------------------------------------------------------------------------


def test_clip():
    bare = at(chain())
    assert jnp.abs(bare.x0).max() > 1
    found = at(Clip())
    np.testing.assert_array_equal(found.x0, jnp.clip(bare.x0, -1, 1))
    assert found.eps is None
    kept = at(Clip(0.5, keep_eps=P))
    np.testing.assert_array_equal(kept.x0, jnp.clip(bare.x0, -0.5, 0.5))
    np.testing.assert_allclose(kept.eps, eps(COND), rtol=1e-4, atol=1e-5)


def test_threshold_is_the_quantile_per_sample():
    bare = np.asarray(at(chain()).x0)
    found = at(Threshold(0.9)).x0
    for row, want in zip(found, bare, strict=True):
        m = max(1.0, np.quantile(np.abs(want), 0.9))
        np.testing.assert_allclose(row, np.clip(want, -m, m) / m, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(at(Threshold(0.9, largest=1.0)).x0, at(Clip()).x0, atol=1e-6)


def test_known():
    mask = jnp.zeros((2, 3, 3, 1)).at[:, 0].set(1.0)
    found = at(Known(jnp.full_like(X, 0.25), mask)).x0
    np.testing.assert_array_equal(found[:, 0], 0.25)
    np.testing.assert_array_equal(found[:, 1:], at(chain()).x0[:, 1:])


def test_the_first_of_a_chain_sees_what_the_others_made():
    double = lambda denoise: lambda *args: Prediction(2 * denoise(*args).x0)  # noqa: E731
    np.testing.assert_allclose(at(chain(Clip(), double)).x0, jnp.clip(2 * at(chain()).x0, -1, 1), atol=1e-6)
    np.testing.assert_allclose(at(chain(double, Clip())).x0, 2 * jnp.clip(at(chain()).x0, -1, 1), atol=1e-6)


# Edges ----------------------------------------------------------------------------------------------------------------------


ENDS = {
    "ddpm": (P, (-1, 0, 999, 1000)), "zero_snr": (process.DDPM(zero_snr=True), (-1, 999)),
    "edm": (process.EDM(), (0.0, 80.0, 113.0)), "cosine": (process.Cosine(), (0.0, 1.0)),
    "flow": (process.Flow(3.0), (0.0, 1.0, 1.0000001)),
}


@pytest.mark.parametrize("kind", ENDS)
def test_schedules_are_finite_at_both_ends(kind):
    """And beyond: churn goes above t_max, and a clean table below 0."""
    p, ends = ENDS[kind]
    schedules = [guidance.power_cosine(3.0, p.unit, power) for power in (0.0, 0.5, 4.0)]
    schedules += [guidance.dynamic_cfg(3.0, p.unit), guidance.dynamic_cfg(3.0, p.unit, -1.0, 2.0)]
    schedules += [guidance.in_interval(3.0, p, low, high) for low, high in ((0.0, float("inf")), (0.2, 5.0))]
    for t in ends:
        for number, schedule in enumerate(schedules):
            w = float(schedule(jnp.asarray(t)))
            assert -1e-6 <= w <= 3.00001, (number, t, w)
    guide = guidance.interval(CFG(3.0, NULL), p, 0.2, float("inf"))
    for t in ends[:2]:
        denoise = lambda x, t, cond, key: Prediction(x + cond["vec"][:, None, None])  # noqa: E731
        assert np.isfinite(at(guide, denoise, t=jnp.asarray(t)).x0).all()


def test_a_negative_power_is_refused():
    with pytest.raises(ConfigError, match="power is 0 or more, got -1"):
        guidance.power_cosine(3.0, P.unit, -1.0)


@pytest.mark.parametrize("shape", [(2, 3, 3, 4), (2, 1, 1, 1), (2, 1)], ids=str)
def test_what_is_constant_has_no_spread_to_rescale(shape):
    """A black picture, and a picture of a single value, whose unbiased deviation is 0 / 0."""
    c, n = jnp.full(shape, 0.5), jnp.zeros(shape)
    np.testing.assert_allclose(guidance.mix_outputs(c, n, jnp.float32(2.0), Mix(phi=0.7)), 1.0)
    np.testing.assert_allclose(guidance.mix_outputs(c, n, jnp.float32(0.0), Mix(phi=0.7)), 0.0)
    kept = guidance.corrupt(c, n, jnp.float32(1.0), 0.1, 1.0, True, "sample")
    np.testing.assert_allclose(kept, c)


def test_conditions_and_scales_stay_float32_where_the_default_is_float64():
    with jax.enable_x64(True):
        cfg = CFG(guidance.power_cosine(3.0, P.unit), NULL, Mix(phi=0.5))
        guide = chain(Clip(), CADS(P.unit), guidance.interval(cfg, P, 0.1, 9.0))

        def denoise(x, t, cond, key):
            assert x.dtype == cond["vec"].dtype == cond["seq"].dtype == jnp.float32
            return Prediction(x)

        assert at(guide, denoise).x0.dtype == jnp.float32


def test_eps_gives_no_x0_where_alpha_is_0():
    for p in (process.Flow(), process.DDPM(zero_snr=True)):
        with pytest.raises(ConfigError, match="predict v, x0 or velocity"):
            at(CFG(3.0, NULL, Mix(space=(p, EPS))), lambda x, t, cond, key: Prediction(x))
