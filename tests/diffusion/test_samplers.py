"""Samplers on Gaussian data: order of convergence, moments, identities, refusals."""
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian, error, wave
from golden_routines.replay import replay

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import guidance, multistep, process, samplers, times, unipc
from diffusion_jax.diffusion.lcm import lcm
from diffusion_jax.types import Prediction

DATA = Gaussian()
KEY = jax.random.key(0)
PROCESSES = {"ddpm": process.DDPM(), "cosine": process.Cosine(), "edm": process.EDM(), "flow": process.Flow()}
ZERO = process.DDPM("scaled_linear", zero_snr=True)

uni = partial(partial, unipc.unipc, lower_order_final=False)
ORDERS = {      # sampler -> the order that it shows; the published third-order formulas show the second, see multistep.py
    "ddim": (samplers.ddim, 1), "heun": (samplers.heun, 2), "edm": (samplers.edm, 2), "plms": (multistep.plms, 2),
    "dpmpp_2m": (multistep.dpmpp_2m, 2), "dpmpp_2m_heun": (partial(multistep.dpm_solver, corrector="heun"), 2),
    "dpmpp_3m": (partial(multistep.dpm_solver, order=3), 2),
    "dpm_2": (partial(multistep.dpm_solver, form="eps"), 2), "dpm_3": (partial(multistep.dpm_solver, order=3, form="eps"), 2),
    "unipc_1": (uni(order=1), 2), "unipc": (uni(), 3), "unipc_3": (uni(order=3), 3), "unipc_bh1": (uni(variant="bh1"), 3),
    "unipc_eps": (uni(form="eps"), 3), "unip": (uni(uncorrected=1000), 2), "unip_3": (uni(order=3, uncorrected=1000), 3),
    "deis_2": (partial(unipc.deis, order=2), 2), "deis_3": (unipc.deis, 3),
}
EVERYWHERE = ("ddim", "heun", "dpmpp_2m", "unipc")
PAIRS = [(name, kind) for name in ORDERS for kind in PROCESSES if kind == "cosine" or name in EVERYWHERE]
FEW = [("unipc", "cosine"), ("unipc_3", "ddpm")]
PAIRS += [("edm", "edm"), ("plms", "edm"), ("dpm_2", "edm"), ("dpmpp_3m", "flow")]


def sparing(cases):
    """Cases (name, kind), of the kin of UniPC few by default."""
    kin = ("uni", "deis")
    return [pytest.param(*case, marks=pytest.mark.slow if case[0].startswith(kin) and case not in FEW else ()) for case in cases]


@pytest.mark.parametrize("name, kind", sparing(PAIRS))
def test_order_of_convergence(name, kind):
    with jax.enable_x64(True):
        make, order = ORDERS[name]
        run = error(PROCESSES[kind], make)
        coarse, fine = run(40), run(80)
        assert math.log2(coarse / fine) > order - 0.1, (coarse, fine)


PURE = {"flow": process.Flow(), "shifted": process.Flow(shift=3.0), "zero_snr": ZERO}
FROM_PURE = ("flow-heun", "shifted-dpmpp_3m", "zero_snr-ddim", "zero_snr-dpmpp_2m", "flow-unipc", "shifted-unipc_3")


@pytest.mark.parametrize("kind, name", [
    pytest.param(kind, name, marks=() if f"{kind}-{name}" in FROM_PURE else pytest.mark.slow)
    for kind in PURE for name in ("ddim", "heun", "dpmpp_2m", "dpmpp_3m", "unipc", "unipc_3")])
def test_from_pure_noise(kind, name):
    p = PURE[kind]
    sampler, grid = ORDERS[name][0](p), times.uniform(p, 100)
    x = jnp.linspace(-1, 1, 4)
    out = samplers.sample(DATA.denoiser(p), sampler, x, grid, {}, KEY)
    np.testing.assert_allclose(out, DATA.flow(p, x, grid[0], grid[-1]), atol=2e-3 if name == "heun" else 0.02)


STOCHASTIC = {
    "fixed_small": (samplers.ancestral, PROCESSES["ddpm"]),
    "fixed_large": (partial(samplers.ancestral, variance="fixed_large"), PROCESSES["ddpm"]),
    "ancestral_flow": (samplers.ancestral, PROCESSES["flow"]),
    "ddim_half": (partial(samplers.ddim, eta=0.5), PROCESSES["flow"]),
    "euler_ancestral": (samplers.euler_ancestral, PROCESSES["edm"]),
    "sde": (multistep.dpmpp_2m_sde, PROCESSES["cosine"]),
    "sde_eps": (partial(multistep.dpm_solver, form="eps", sde=True), PROCESSES["cosine"]),
    "edm_churn": (partial(samplers.edm, s_churn=40.0), PROCESSES["edm"]),
    "edm_churn_ddpm": (partial(samplers.edm, s_churn=40.0, s_min=0.05, s_max=50.0), PROCESSES["ddpm"]),
    "euler_churn": (partial(samplers.euler, s_churn=4.0), PROCESSES["edm"]),
}


@pytest.mark.parametrize("name", [
    name if name in ("ancestral_flow", "euler_ancestral", "sde", "edm_churn") else pytest.param(name, marks=pytest.mark.slow)
    for name in STOCHASTIC])
def test_stochastic_samplers_keep_the_distribution(name):
    make, p = STOCHASTIC[name]
    grid = times.log_snr(p, 100, 0.02, 60.0) if p is not PROCESSES["flow"] else times.uniform(p, 100)
    draw = np.random.default_rng(0).standard_normal
    start = p.alpha(grid[0]) * DATA.mean + DATA.width(p, grid[0]) * draw(40000, np.float32)
    sampler = make(p, noise=replay(draw(40000, np.float32) for _ in itertools.count()))
    x = samplers.sample(DATA.denoiser(p), sampler, start, grid, {}, KEY)
    np.testing.assert_allclose(x.mean(), DATA.mean, atol=0.02)
    np.testing.assert_allclose(x.std(), DATA.std, rtol=0.05)


# Identities -----------------------------------------------------------------------------------------------------------------


def run(sampler, p, grid, x=None, keep=False, denoise=None):
    x = jnp.linspace(-1, 1, 6).reshape(2, 3) if x is None else x
    return samplers.sample(denoise or DATA.denoiser(p), sampler, x, grid, {}, KEY, keep)


@pytest.mark.parametrize("kind", PROCESSES)
def test_ddim_1_is_the_posterior(kind):
    p = PROCESSES[kind]
    grid = times.uniform(p, 10)
    one, other = samplers.ddim(p, 1.0, wave), samplers.ancestral(p, noise=wave)
    np.testing.assert_allclose(run(one, p, grid), run(other, p, grid), rtol=1e-4, atol=1e-5)


ddim_1, first_order = partial(samplers.ddim, eta=1.0, noise=wave), partial(multistep.dpm_solver, order=1)
EQUAL = {       # pairs of methods that are one
    "euler_ancestral = ddim(1)": (partial(samplers.euler_ancestral, noise=wave), ddim_1),
    "dpmpp_1 = ddim": (first_order, samplers.ddim),
    "dpm_1 = ddim": (partial(first_order, form="eps"), samplers.ddim),
    "sde_1 = ddim(1)": (partial(first_order, sde=True, noise=wave), ddim_1),
    "edm without churn in range = edm": (partial(samplers.edm, s_churn=40.0, s_min=1e3, noise=wave), samplers.edm),
    "unip_1 = ddim": (partial(unipc.unipc, order=1, uncorrected=10), samplers.ddim),
    "unip_2 = dpmpp_2m": (partial(unipc.unipc, uncorrected=10), multistep.dpmpp_2m),
    "unip_2 of eps = dpm_2": (partial(unipc.unipc, form="eps", uncorrected=10), partial(multistep.dpm_solver, form="eps")),
    "deis_1 = ddim": (partial(unipc.deis, order=1), samplers.ddim),
}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow) if name.startswith(("unip", "deis")) else name for name in EQUAL])
def test_equal_methods(name):
    one, other = EQUAL[name]
    p = PROCESSES["ddpm"]
    grid = times.respace(p, 10)
    np.testing.assert_allclose(run(one(p), p, grid), run(other(p), p, grid), rtol=1e-5, atol=1e-5)


def test_heun_of_flow_is_heun_of_its_velocity():
    p, grid = PROCESSES["flow"], np.linspace(1, 0, 11)
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)
    velocity = lambda x, t: (x - DATA.x0(p, x, t)) / t  # noqa: E731
    by_hand = x
    for t, s in itertools.pairwise(grid):
        v = velocity(by_hand, t)
        if s > 0:
            v = (v + velocity(by_hand + (s - t) * v, s)) / 2
        by_hand = by_hand + (s - t) * v
    np.testing.assert_allclose(run(samplers.heun(p), p, times.uniform(p, 10), x), by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["ddpm", "flow"])
def test_ddim_returns_from_its_inversion(kind):
    p = PROCESSES[kind]
    low, high = (20, 980) if kind == "ddpm" else (0.02, 0.98)
    x, gaps = jnp.linspace(-1, 1, 6).reshape(2, 3), []
    for n in (10, 100):
        grid = np.linspace(high, low, n + 1).astype(np.int32 if kind == "ddpm" else np.float32)
        up = run(samplers.ddim(p), p, grid[::-1], x)
        np.testing.assert_allclose(up, DATA.flow(p, x, grid[-1], grid[0]), rtol=4 / n)
        gaps.append(float(jnp.abs(run(samplers.ddim(p), p, grid, up) - x).max()))
    assert gaps[1] < gaps[0] / 5


def test_inversion_reaches_pure_noise_and_starts_clean():
    p = PROCESSES["ddpm"]
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)
    up = np.append(times.leading(p, 100)[-2::-1], p.steps).astype(np.int32)
    eps = DATA.flow(p, x, up[0], up[-1])
    np.testing.assert_allclose(run(samplers.ddim(p), p, up, x), eps, rtol=0.05)            # the last state is eps itself
    clean = np.append(np.int32(-1), np.linspace(0, 990, 100).astype(np.int32))
    np.testing.assert_allclose(run(samplers.ddim_inversion(p), p, clean, x), DATA.flow(p, x, -1, 990), atol=0.05)


def test_pairs_and_kept_states():
    p = PROCESSES["ddpm"]
    grid = times.leading(p, 10)
    chain, path = run(samplers.ddim(p), p, grid), run(samplers.ddim(p), p, np.stack([grid[:-1], grid[1:]], 1), keep=True)
    assert path.shape == (10, 2, 3)
    np.testing.assert_array_equal(chain, path[-1])


dpm = partial(partial, multistep.dpm_solver, lower_order_final=False)
STILL = {       # every sampler
    "ancestral": samplers.ancestral, "fixed_large": partial(samplers.ancestral, variance="fixed_large"),
    "learned_range": partial(samplers.ancestral, variance="learned_range"),
    "learned": partial(samplers.ancestral, variance="learned"), "ddim": samplers.ddim, "ddim_1": partial(samplers.ddim, eta=1.0),
    "ddim_inversion": samplers.ddim_inversion, "euler_ancestral": samplers.euler_ancestral, "heun": samplers.heun,
    "edm": samplers.edm, "edm_churn": partial(samplers.edm, s_churn=40.0), "euler_churn": partial(samplers.euler, s_churn=4.0),
    "plms": multistep.plms, "dpmpp_1": dpm(order=1), "dpmpp_2m": dpm(), "dpmpp_2m_heun": dpm(corrector="heun"),
    "dpmpp_2m_sde": dpm(sde=True), "dpmpp_3m": dpm(order=3), "dpm_2": dpm(form="eps", corrector="heun"),
    "dpm_3": dpm(form="eps", order=3), "dpm_2_sde": dpm(form="eps", sde=True),
    "unipc_1": uni(order=1), "unipc": uni(), "unipc_3": uni(order=3), "unipc_bh1": uni(variant="bh1"),
    "unipc_eps": uni(form="eps", order=3), "unipc_late": uni(order=3, uncorrected=2),
    "deis_2": partial(unipc.deis, order=2, lower_order_final=False), "deis_3": partial(unipc.deis, lower_order_final=False),
    "lcm": lcm,
}
SILENT = ("ddim_inversion", "heun", "plms", *(name for name in STILL if name.startswith(("uni", "deis"))))
LEVELS = {"ddpm": (999, 700, 300, 0, -1), "rounded": (999, 700, 300, 0, -1), "edm": (80.0, 9.0, 1.0, 0.1, 0.0)}
STANDS = [(name, "ddpm") for name in STILL] + [(name, "rounded") for name in ("ancestral", "learned_range")]
STANDS += [(name, "edm") for name in ("ancestral", "heun", "edm", "plms", "dpmpp_3m", "dpm_2", "unipc_3", "deis_3")]

# One of one step, one that remembers, one that draws, and the published rounding.
STANDS_OF_EACH = (("ddim", "ddpm"), ("plms", "ddpm"), ("dpmpp_2m_sde", "ddpm"), ("ancestral", "rounded"))


@pytest.mark.parametrize("name, kind", [
    pytest.param(*pair, marks=() if pair in STANDS_OF_EACH else pytest.mark.slow) for pair in STANDS])
def test_a_step_of_length_zero_is_the_identity_and_leaves_no_trace(name, kind):
    """At the start, twice in the middle, next to the end, and at the end; raw variances lie around -1."""
    p = process.DDPM(rounded=True) if kind == "rounded" else PROCESSES[kind]
    exact = DATA.denoiser(p)

    def denoise(x, t, cond, key):
        return Prediction(exact(x, t, cond, key).x0, logvar=jnp.linspace(-1.5, -0.5, x.size).reshape(x.shape))

    top, a, b, c, clean = LEVELS[kind]
    plain = np.array([[top, a], [a, b], [b, c], [c, clean]])
    still = np.array([[top, top], [top, a], [a, a], [a, a], [a, b], [b, c], [c, c], [c, clean], [clean, clean]])
    if name == "ddim_inversion":
        plain, still = plain[::-1, ::-1], still[::-1, ::-1]
    make = STILL[name]
    sampler = make(p) if name in SILENT else make(p, noise=wave)
    with jax.disable_jit():                                                             # of programs that run once
        path = run(sampler, p, still, keep=True, denoise=denoise)
        ends = run(sampler, p, plain, keep=True, denoise=denoise)
    rests = np.array([t == s for t, s in still])
    before = np.concatenate([jnp.linspace(-1, 1, 6).reshape(1, 2, 3), path[:-1]])
    np.testing.assert_array_equal(path[rests], before[rests])
    np.testing.assert_allclose(path[~rests], ends, rtol=1e-5, atol=1e-6)


def test_a_tiny_step_is_no_slope():
    """Across it the x0 of a network differs by rounding, here of bfloat16, which the next step must not draw out."""
    p = process.Flow()
    rough = lambda x, t, cond, key: Prediction(DATA.x0(p, x, t) + 1e-2 * jnp.cos(1e8 * t))  # noqa: E731
    for make in (multistep.dpmpp_2m, partial(multistep.dpm_solver, order=3), multistep.dpmpp_2m_sde, unipc.unipc, uni(order=3)):
        sampler = make(p, noise=wave) if make is multistep.dpmpp_2m_sde else make(p)
        plain, tiny = np.float32([0.6, 0.3, 0.0]), np.float32([0.6, 0.6 - 1e-6, 0.3, 0.0])
        np.testing.assert_allclose(run(sampler, p, tiny, denoise=rough), run(sampler, p, plain, denoise=rough), atol=0.1)


@pytest.mark.parametrize("kind", ["ddpm", "edm"])
def test_plms_of_a_single_step_that_is_left_is_ddim(kind):
    p, grid = PROCESSES[kind], {"ddpm": np.array([300, 300, -1]), "edm": np.array([2.0, 2.0, 0.0])}[kind]
    np.testing.assert_allclose(run(multistep.plms(p), p, grid), run(samplers.ddim(p), p, grid[1:]), rtol=1e-5, atol=1e-6)


def test_a_condition_belongs_to_a_step_and_all_its_calls():
    """Heun's second call is made at the time at which the next step begins."""
    p, grid, calls = process.Flow(), np.float32([1.0, 0.75, 0.5, 0.25]), []

    def denoise(x, t, cond, key):
        calls.append((float(t), float(cond["vec"])))
        return Prediction(x)

    with jax.disable_jit():
        samplers.sample(denoise, samplers.heun(p), jnp.zeros(2), grid, lambda t: {"vec": t > 0.6}, KEY)
    assert calls == [(1.0, 1), (0.75, 1), (0.75, 1), (0.5, 1), (0.5, 0), (0.25, 0)]


@pytest.mark.parametrize("name, kind", sparing([(name, "ddpm") for name in STILL] + [
    ("ddim", "flow"), ("heun", "flow"), ("dpmpp_2m", "flow"), ("edm_churn", "edm"), ("ancestral", "cosine")]))
def test_images_stay_float32_where_the_default_is_float64(name, kind):
    p = PROCESSES[kind]
    with jax.enable_x64(True):
        make = STILL[name]
        sampler = make(p) if name in SILENT else make(p, noise=wave)
        grid = times.uniform(p, 3)[:: -1 if name == "ddim_inversion" else 1]

        def denoise(x, t, cond, key):
            assert x.dtype == jnp.float32
            return Prediction(p.alpha(t) * x, logvar=x)                                 # of a network that knows no better

        x = samplers.start(p, grid, KEY, (2, 3))
        out = jax.eval_shape(lambda x: samplers.sample(denoise, sampler, x, grid, {}, KEY, keep=True), x)
        assert x.dtype == out.dtype == jnp.float32


def test_known_region():
    p = PROCESSES["ddpm"]
    known, x, grid = jnp.ones((1, 2, 2, 1)), jnp.full((1, 2, 2, 1), 9.0), times.respace(p, 10)
    mask = jnp.array([[1.0, 1.0], [0.0, 0.0]])[None, :, :, None]
    inpaint = samplers.with_known(samplers.ddim(p), p, known, mask, wave)
    one, two, bare = run(inpaint, p, grid, x), run(inpaint, p, grid, -x), run(samplers.ddim(p), p, grid, x)
    np.testing.assert_array_equal(one[:, 0], two[:, 0])           # where it is known the start does not matter
    np.testing.assert_allclose(one[:, 1], bare[:, 1], rtol=1e-6)


def test_start_has_the_width_of_the_process():
    for kind, width in (("ddpm", 1.0), ("edm", 80.0), ("flow", 1.0)):
        p = PROCESSES[kind]
        x = samplers.start(p, times.uniform(p, 4), KEY, (20000,))
        np.testing.assert_allclose(x.std(), width, rtol=0.02)


# Gradients ------------------------------------------------------------------------------------------------------------------


def test_a_gradient_shifts_the_ancestral_mean_by_the_variance():
    p, x = PROCESSES["ddpm"], jnp.linspace(-1, 1, 6).reshape(2, 3)
    grad = jnp.cos(3 * x)
    with_grad = lambda x, t, cond, key: Prediction(DATA.x0(p, x, t), grad=grad)  # noqa: E731
    pair = np.array([[500, 400]], np.int32)
    variance = process.posterior(p, jnp.int32(500), jnp.int32(400)).small
    sampler = samplers.ancestral(p, noise=wave)
    shift = run(sampler, p, pair, x, denoise=with_grad) - run(sampler, p, pair, x)
    np.testing.assert_allclose(shift, variance * grad, rtol=1e-3, atol=1e-6)


# Refusals -------------------------------------------------------------------------------------------------------------------

REFUSED = [
    (lambda: samplers.edm(process.Flow()), "heun"),
    (lambda: samplers.euler(process.Flow(), s_churn=1.0), "euler"),
    (lambda: samplers.ddim(process.DDPM(), 1.5), "0 ... 1: got 1.5"),
    (lambda: samplers.euler_ancestral(process.DDPM(), -0.1), "0 ... 1: got -0.1"),
    (lambda: samplers.ancestral(process.DDPM(), "fixed_smal"), "did you mean 'fixed_small'"),
    (lambda: samplers.edm(process.EDM(), s_churn=float("nan")), "s_churn is nan"),
    (lambda: samplers.edm(process.EDM(), s_churn=-1.0), "s_churn is 0 or more"),
    (lambda: samplers.euler(process.EDM(), s_churn=1.0, s_min=2.0, s_max=1.0), "s_min <= s_max"),
    (lambda: samplers.euler(process.EDM(), s_noise=float("inf")), "s_noise is inf"),
]


@pytest.mark.parametrize("call, message", REFUSED)
def test_refusals(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize(("denoise", "grid", "cond", "message"), [
    (lambda x, t, cond, key: Prediction(x), 20, {}, "times are a grid such as trailing"),
    (lambda x, t, cond, key: Prediction(x), np.ones(1), {}, "times are a grid such as trailing"),
    (guidance.CFG(3.0, {}), np.arange(3.0), {}, "give the guidance one, as in CFG"),
    (lambda x, t, cond, key: Prediction(x), np.arange(3.0), {"label": np.zeros(2, int)}, "embed it first, cond = task.embed"),
], ids=["a number of steps", "no step", "a guidance", "a raw condition"])
def test_what_sample_is_given_by_mistake_is_refused(denoise, grid, cond, message):
    p = process.DDPM()
    with pytest.raises(ConfigError, match=message):
        samplers.sample(denoise, samplers.ddim(p), jnp.zeros((2, 4)), grid, cond, jax.random.key(0))


def test_a_run_in_parts_is_the_whole_run():
    """begin and advance, a few steps at a time, and what the denoiser took the image for at the last of them."""
    p, key, x = process.DDPM(), jax.random.key(1), jax.random.normal(jax.random.key(0), (2, 4))
    grid = np.array([900, 600, 400, 200, 50, -1])

    def denoise(x, t, cond, key):
        return Prediction(jnp.tanh(x) * p.alpha(t))

    for sampler in (samplers.ancestral(p), multistep.dpmpp_2m(p), multistep.plms(p)):
        whole = samplers.sample(denoise, sampler, x, grid, {}, key)
        pairs, keys = samplers.pairs_of(grid), jax.random.split(key, 5)
        progress = samplers.begin(sampler, x, 5)
        for part in (slice(0, 2), slice(2, 5)):
            before = progress.x
            progress, _ = samplers.advance(denoise, sampler, progress, pairs[part], keys[part], {})
        np.testing.assert_allclose(progress.x, whole, atol=1e-6)
        assert progress.x0.shape == before.shape and np.isfinite(progress.x0).all()
    ddim = samplers.ddim(p)
    one, _ = samplers.advance(denoise, ddim, samplers.begin(ddim, x, 5), pairs[:1], keys[:1], {})
    np.testing.assert_allclose(one.x0, jnp.tanh(x) * p.alpha(900), atol=1e-6)
