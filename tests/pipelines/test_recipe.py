"""How to sample: what is refused, that every combination runs, and what guidance does."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import guidance, scales
from diffusion_jax.diffusion.process import DDPM, Flow
from diffusion_jax.diffusion.samplers import sample, start
from diffusion_jax.models.augment import Augmented
from diffusion_jax.models.cond import Joint, Label, LowRes, Nothing
from diffusion_jax.pipelines import spelling
from diffusion_jax.pipelines.conditions import conditions
from diffusion_jax.pipelines.recipe import Recipe, Strengths
from diffusion_jax.pipelines.sampling import generate, per_image
from diffusion_jax.pipelines.spelling import GRIDS, parse
from diffusion_jax.runs.folder import Model
from diffusion_jax.types import Prediction
from pipelines.toy_task import CLASSES, SHAPE, make, parameters

PARAMS = parameters(0.1, -0.2, 0.3, 0.05)
EVERYTHING = dict(guidance=3.0, phi=0.7, cads="s=0.2,psi=0.5", interval="0.2,6", clip=1.5, threshold=0.9, channels=1)
CFG = dict(guidance=2.5)
TABLE = ("ddpm", "flow", "cosine")
SAMPLERS = [name for name in spelling.SAMPLERS if name != "meanflow"]
"""Those that go with every model."""
REFUSED = {("plms", "flow"): "dpmpp_2m", ("edm", "flow"): "heun"}                     # alpha = 0 at the start


def images(recipe, name="ddpm", params=PARAMS, task=None, seed=0):
    task = task or make(name)
    return np.concatenate(list(generate(Model(params, None, task), recipe, conditions(task, CLASSES), CLASSES, seed)))


@pytest.fixture(autouse=True)
def eagerly():
    """A hundred programs of three steps: running them op by op is ten times as fast as compiling them."""
    with jax.disable_jit():
        yield


# As text --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(sampler="ddmi"), "unknown sampler 'ddmi': did you mean 'ddim'"),
        (dict(sampler="dpmpp2m"), "did you mean 'dpmpp_2m'"),
        (dict(sampler="ddim,0.5"), "key=value"),
        (dict(sampler="ddim,etaa=0.5"), "unknown option of ddim 'etaa': did you mean 'eta'"),
        (dict(sampler="ddim,eta=half"), "eta takes a number, not 'half'"),
        (dict(sampler="dpm_solver,form=2"), "form takes a word, not 2"),
        (dict(sampler="ddim,noise=1"), "unknown option of ddim 'noise'"),              # parts of the program are no options
        (dict(sampler="ddim,process=1"), "unknown option of ddim 'process'"),
        (dict(sampler="heun,eta=1"), "heun takes no options"),
        (dict(times="tailing"), "unknown times 'tailing': did you mean 'trailing'"),
        (dict(times="karras,rhoo=7"), "did you mean 'rho'"),
        (dict(schedule="constnt"), "unknown schedule 'constnt': did you mean 'constant'"),
        (dict(schedule="power_cosine,powr=4"), "did you mean 'power'"),
        (dict(cads="cads,s=0.1"), "write options"),
        (dict(cads="tau=0.1"), "unknown option of CADS 'tau': did you mean 'tau"),
        (dict(interval="0.1"), "low,high"),
        (dict(interval="5,0.1"), "low,high"),
        (dict(interval="a,b"), "low,high"),
        (dict(steps="ddim50"), "times 'respace'"),
        (dict(steps=-3), "respacing"),
        (dict(steps=0), "at least 1"),
        (dict(threshold=2.0), "threshold is 0 ... 1, got 2.0"),
        (dict(clip=-1.0), "clip is 0 or more, got -1.0"),
        (dict(channels=-1), "channels is 0 or more"),
        (dict(augment=1.5), "augment is 0 ... 1"),
        (dict(temperature=-0.1), "temperature is 0 or more"),
        (dict(guidance=float("nan")), "guidance is nan, which is not finite"),
        (dict(phi=float("inf")), "phi is inf, which is not finite"),
        (dict(levels=16), "levels 16 is 256, as in a file, or 0"),
        (dict(keep_parallel=-0.1), "keep_parallel is 0 ... 1"),
        (dict(keep_parallel=3.0), "keep_parallel is 0 ... 1"),
        (dict(interval="-1,5"), "low,high"),
        (dict(interval="0,nan"), "low,high"),
        (dict(interval="1_0,20"), "low,high"),
        (dict(interval="1,2,3"), "low,high"),
        (dict(steps=True), "steps is a whole number or a text, got True"),
        (dict(steps=2.5), "steps is a whole number"),
        (dict(steps="00"), "at least 1"),
        (dict(steps=",,,"), "neither a number"),
        (dict(steps=",,,", times="respace"), "neither a number"),
        (dict(steps="5,\u00b2", times="respace"), "neither a number"),
        (dict(steps="ddim\u0663", times="respace"), "neither a number"),
        (dict(steps="\u0663"), "neither a number"),
        (dict(steps="1_0"), "neither a number"),
        (dict(steps="0,5", times="respace"), "neither a number"),
        (dict(steps=10**12), "steps is 100000 or less"),
        (dict(steps="9" * 40), "steps is 100000 or less"),
        (dict(steps=[1]), "steps is a whole number or a text, got"),
        (dict(guidance="3"), "guidance is a number, got '3'"),
        (dict(guidance=None), "guidance is a number, got None"),
        (dict(guidance=True), "guidance is a number, got True"),
        (dict(guidance=np.float32("nan")), "not finite"),
        (dict(guidance=10**400), "guidance is a number"),
        (dict(channels=1.5), "channels is a whole number"),
        (dict(plus_plus="no"), "plus_plus is True or False, got 'no'"),
        (dict(sampler=3), "sampler is a text, got 3"),
        (dict(sampler={"name": "diffusion_jax.files:whole"}), "sampler is a text"),
        (dict(cads=None), "cads is a text, got None"),
        (dict(guidence=2.0), "unknown sampling option 'guidence': did you mean 'guidance'"),
    ],
    ids=str,
)
def test_mistakes_are_refused_before_there_is_a_model(options, says):
    with pytest.raises(ConfigError, match=says) as error:
        Recipe.of(options)
    assert "\n" not in str(error.value)


def test_whole_numbers_of_files_and_of_numpy_are_ints():
    for steps in (5.0, np.int64(5), "5", "05", " 5"):
        recipe = Recipe(steps=steps)
        assert recipe == Recipe(steps=5) and type(recipe.steps) is int and hash(recipe) == hash(Recipe(steps=5))
    assert type(Recipe(guidance=np.float32(2)).guidance) is float


@pytest.mark.parametrize("times", GRIDS)
def test_every_grid_falls_from_noise_to_clean(times):
    process, clean = (Flow(), 0) if times == "flow_match" else (DDPM(), -1)
    grid = Recipe(times=times, steps=5).grid(process)
    assert len(grid) == 6 and (np.diff(grid) < 0).all() and grid[-1] == clean


def test_no_times_go_to_where_there_is_no_noise_in_one_step():
    for times in ("uniform", "trailing", "linspace", "karras", "log_snr"):
        np.testing.assert_array_equal(Recipe(times=times, steps=1).grid(DDPM()), [999, -1])


def test_respacings_go_through():
    np.testing.assert_array_equal(Recipe(times="respace", steps="ddim50").grid(DDPM()), [*range(980, -1, -20), -1])
    assert len(Recipe(times="respace", steps="10,15,20").grid(DDPM())) == 46


# Against a model ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "task", "says"),
    [
        (dict(times="trailing"), dict(name="flow"), "continuous"),
        (dict(steps="ddim300", times="respace"), {}, "no integer stride.*'ddim334'"),
        (dict(steps=1, times="respace"), {}, "choose times 'trailing'"),
        (dict(steps=1, times="leading"), {}, "choose times 'trailing'"),
        (dict(times="karras,sigma_max=0.5"), {}, "the times begin at t = .*choose times 'trailing'"),
        (dict(steps=1001), {}, "1000 times"),
        (dict(sampler="plms", steps=1), {}, "at least 2 steps"),
        (dict(sampler="euler,s_churn=10"), dict(name="flow"), "divides by alpha"),
        (dict(sampler="ancestral,variance=learned_range"), {}, "needs a network that learned it"),
        (dict(sampler="ancestral,variance=fixed"), {}, "unknown variance 'fixed': did you mean"),
        (dict(sampler="dpm_solver,order=4"), {}, "orders 1, 2 and 3"),
        (dict(), dict(name="flow", scale=scales.Eps()), "predict v, x0 or velocity"),
        (dict(guidance=2.0), dict(cond=Nothing()), "no condition"),
        (dict(cads="s=0.1"), dict(cond=Nothing()), "leave cads out"),
        (dict(cads="s=0.1"), dict(cond=LowRes(2)), "leave cads out"),
        (dict(cads="s=0.1"), dict(cond=Augmented(Nothing(), 4)), "leave cads out"),
        (dict(cads="statistics=sampel"), {}, "did you mean 'sample'"),
        (dict(sampler="ancestral", plus_plus=True), {}, "CFG.. changes the noise of a step.*choose ddim"),
        (dict(plus_plus=True), dict(cond=Nothing()), "no condition that could guide it"),
        (dict(plus_plus=True, sampler="dpmpp_2m"), {}, "CFG.. changes the noise of a step.*choose ddim"),
        (dict(plus_plus=True, sampler="dpm_solver,order=3"), {}, "CFG.. changes the noise of a step.*choose ddim"),
        (dict(times="karras,sigma_min=0"), {}, "sigma_min=0,"),
    ],
    ids=str,
)
def test_what_does_not_go_with_the_model_is_refused_before_anything_runs(recipe, task, says):
    task = make(**task)
    with pytest.raises(ConfigError, match=says):
        Recipe(**recipe).check(task)
    with pytest.raises(ConfigError, match=says):
        generate(Model(PARAMS, None, task), Recipe(**recipe), {}, 1, 0)


@pytest.mark.parametrize("cond", [LowRes(2, augment=0.5, width=4), Joint((Label(CLASSES, 4), LowRes(2)))], ids=["level", "label"])
def test_cads_is_taken_where_an_image_is_not_all_that_is_seen(cond):
    with jax.disable_jit(False):
        Recipe(cads="s=0.1", steps=2).check(make(cond=cond))


PAIRS = [pair for pair in itertools.product(SAMPLERS, TABLE) if pair not in REFUSED]


@pytest.mark.parametrize(("sampler", "name"), [
    pytest.param(*pair, marks=() if pair == ("heun", "cosine") else pytest.mark.slow) for pair in PAIRS])
@pytest.mark.slow
def test_every_sampler_on_every_process_with_all_guidance_at_once(sampler, name):
    with jax.disable_jit(False):                                                       # traced: the types of the scan hold
        for guidance in ({}, CFG, EVERYTHING):
            Recipe(sampler=sampler, steps=3, **guidance).check(make(name))
    got = images(Recipe(sampler=sampler, steps=3, **EVERYTHING), name)
    assert got.shape == (CLASSES, *SHAPE) and np.isfinite(got).all()
    assert np.abs(got).max() < (1e3 if sampler == "plms" else 5)                       # plms divides by alpha
    assert len({image.tobytes() for image in got}) == CLASSES                         # its own label and noise for each


@pytest.mark.parametrize("guidance", [pytest.param({}, marks=pytest.mark.slow), EVERYTHING], ids=["plain", "guided"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_check_passes_where_the_default_is_float64(sampler, guidance):
    with jax.disable_jit(False), jax.enable_x64(True):
        Recipe(sampler=sampler, steps=5, **guidance).check(make())


@pytest.mark.parametrize("name", [name if name == "cosine" else pytest.param(name, marks=pytest.mark.slow) for name in TABLE])
@pytest.mark.slow
def test_images_are_the_same_where_the_default_is_float64(name):
    recipe = Recipe(sampler="heun", steps=3, **CFG)
    want = images(recipe, name)
    with jax.enable_x64(True):
        got = images(recipe, name)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize(("sampler", "name"), REFUSED)
def test_what_divides_by_alpha_is_refused_where_it_is_0(sampler, name):
    with pytest.raises(ConfigError, match=REFUSED[sampler, name]):
        Recipe(sampler=sampler, steps=3).check(make(name))


MOVED = parameters(*(0.05 + 2.5 * (m - 0.05) for m in (0.1, -0.2, 0.3)), 0.05)         # what guidance by 2.5 makes of PARAMS


@pytest.mark.parametrize(
    ("options", "same_as"),
    [
        (CFG, {}),
        *(pytest.param(dict(CFG, **idle), {}, marks=pytest.mark.slow) for idle in (
            dict(schedule="constant"), dict(interval="0,inf"), dict(channels=2), dict(clip=9.0))),
        (dict(CFG, threshold=1.0), dict(threshold=1.0)),
        (dict(CFG, clip=0.2), dict(clip=0.2)),
        (dict(CFG, cads="tau1=2,tau2=3"), {}),                                         # gamma is 1 throughout: no noise
        (dict(CFG, cads="s=0.0,tau1=0.9,tau2=1.1,psi=1"), {}),                         # rescaling undoes the shrinking
    ],
    ids=str,
)
def test_guidance_of_an_affine_model_is_a_moved_condition(options, same_as):
    moved = images(Recipe(steps=3, **same_as), params=MOVED)
    np.testing.assert_allclose(images(Recipe(steps=3, **options)), moved, atol=2e-5)
    assert np.abs(moved - images(Recipe(steps=3, **same_as))).max() > 0.01


@pytest.mark.parametrize(("sampler", "name"), [("heun", "flow"), ("edm", "edm"), ("dpmpp_2m_sde", "ddpm")])
def test_samplers_see_guidance_at_each_of_their_calls(sampler, name):
    guided, moved = Recipe(sampler=sampler, steps=3, **CFG), Recipe(sampler=sampler, steps=3)
    np.testing.assert_allclose(images(guided, name), images(moved, name, MOVED), atol=2e-5)


@pytest.mark.parametrize(
    "options",
    [dict(interval="1e8,1e9"), dict(guidance=1.0, schedule="power_cosine"), dict(guidance=1.0, cads="tau1=2,tau2=3")], ids=str,
)
def test_guidance_that_is_none(options):
    np.testing.assert_allclose(images(Recipe(steps=3, **CFG | options)), images(Recipe(steps=3)), atol=1e-6)


def test_dynamic_thresholding_sees_what_no_clip_has_cut():
    """What is thresholded fits into the clip already; a clip first would leave nothing to threshold."""
    x = np.linspace(-3, 3, 32, dtype=np.float32).reshape(1, *SHAPE)
    both, threshold, clip = (
        Recipe(**options).make_guidance(make(), Strengths(), None, None)(lambda x, t, cond, key: Prediction(x))(x, 0, {}, None).x0
        for options in (dict(clip=1.0, threshold=0.9), dict(threshold=0.9), dict(clip=1.0)))
    np.testing.assert_array_equal(both, threshold)
    assert np.abs(both - clip).max() > 0.5


def test_channels_guides_the_first_only():
    got, plain, guided = (images(Recipe(steps=3, **options)) for options in (dict(CFG, channels=1), {}, CFG))
    np.testing.assert_allclose(got[..., 0], guided[..., 0], atol=1e-6)
    np.testing.assert_allclose(got[..., 1], plain[..., 1], atol=1e-6)


def test_phi_keeps_the_spread_of_the_conditional_prediction():
    plain, rescaled, guided = (images(Recipe(steps=1, **o)).std(axis=(1, 2, 3), ddof=1) for o in ({}, dict(CFG, phi=1.0), CFG))
    np.testing.assert_allclose(rescaled, plain, rtol=1e-5)                              # a single step ends at x0 itself
    assert np.abs(guided / plain - 1).max() > 0.02


@pytest.mark.parametrize(("schedule", "first"), [("dynamic_cfg", "null"), ("power_cosine", "plain")])
def test_schedules_begin_at_full_noise(schedule, first):
    """One step from t_max, where dynamic CFG weighs by 0 and the power cosine by 1."""
    got = images(Recipe(steps=1, times="trailing", schedule=schedule, **CFG))
    want = {"null": parameters(*[0.05] * 4), "plain": PARAMS}[first]
    np.testing.assert_allclose(got, images(Recipe(steps=1, times="trailing"), params=want), atol=1e-4)


def test_cads_draws_afresh_for_every_image_and_step():
    task, noisy = make(), Recipe(steps=3, cads="s=1.0,psi=0")
    raw = {"label": np.zeros(3, np.int32)}
    pair = [np.concatenate(list(generate(Model(PARAMS, None, task), recipe, raw, 3, 0))) for recipe in (noisy, Recipe(steps=3))]
    moved = (pair[0] - pair[1]).mean(axis=(1, 2, 3))
    assert np.unique(np.round(moved, 6)).size == 3                                     # the same label, a different noise each


@pytest.mark.slow
def test_the_ancestral_sampler_takes_the_variance_of_the_task():
    task = make(variance="learned_range", objective="hybrid")                          # raw 0: half-way in log variance
    got = images(Recipe(sampler="ancestral", steps=3), task=task)
    told = images(Recipe(sampler="ancestral,variance=learned_range", steps=3), task=task)
    np.testing.assert_array_equal(got, told)
    small, large = (images(Recipe(sampler=f"ancestral,variance=fixed_{v}", steps=3), task=task) for v in ("small", "large"))
    assert np.abs(got - small).max() > 1e-3 and np.abs(got - large).max() > 1e-3


# Parts of guidance that the recipe only names -------------------------------------------------------------------------------


def by_hand(mix, w=2.5, name="ddpm", steps=4):
    """The images of labels 0, 1 and 2 by classifier-free guidance with `mix`, put together without a recipe."""
    task = make(name)
    key, noise, times = jax.random.key(0), per_image(jnp.arange(CLASSES)), Recipe(steps=steps).grid(task.process)
    k_start, k_run, _ = jax.random.split(key, 3)
    raw = {"label": np.arange(CLASSES)}
    null = task.embed(PARAMS, {"label": np.full(CLASSES, CLASSES)})
    denoise = guidance.CFG(w, null, mix._replace(space=(task.process, task.scale)))(task.denoiser(PARAMS))
    x = start(task.process, times, k_start, (CLASSES, *SHAPE), noise)
    return sample(denoise, Recipe().make_sampler(task, noise), x, times, task.embed(PARAMS, raw), k_run)


@pytest.mark.parametrize(("options", "mix"), [
    (dict(keep_parallel=0.25), guidance.Mix(remove_parallel=True, keep_parallel=0.25)),
    (dict(plus_plus=True, keep_parallel=0.5, phi=0.3), guidance.Mix(0.3, None, True, 0.5, None, True)),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in (
        (dict(), guidance.Mix()),
        (dict(keep_parallel=0.0), guidance.Mix(remove_parallel=True)),
        (dict(plus_plus=True), guidance.Mix(plus_plus=True)))),
], ids=str)
def test_projection_and_cfg_plus_plus_are_those_of_guidance(options, mix):
    got = images(Recipe(steps=4, **CFG, **options))
    np.testing.assert_allclose(got, by_hand(mix), atol=1e-5)
    if options:
        assert np.abs(got - images(Recipe(steps=4, **CFG))).max() > 1e-3


def test_what_is_kept_of_the_parallel_part_is_what_stands_on_it():
    """(3) of guidance.py in NumPy, on the x0 of one step: the share of u along c that is not kept is missing."""
    plain, null = (images(Recipe(steps=1), params=p) for p in (PARAMS, parameters(*[0.05] * 4)))
    c, u = plain.reshape(3, -1), (plain - null).reshape(3, -1)
    along = (u * c).sum(1, keepdims=True) / (c * c).sum(1, keepdims=True) * c
    for share in (0.0, 0.6, 1.0):
        got = images(Recipe(steps=1, keep_parallel=share, **CFG)).reshape(3, -1)
        np.testing.assert_allclose(got, c + 1.5 * (u - (1 - share) * along), atol=2e-5)


def test_cfg_plus_plus_at_scale_1_is_not_plain_sampling():
    """Its scale is lambda, 1 of which is the conditional x0 with the null prediction's noise."""
    assert Recipe(plus_plus=True).guides and not Recipe().guides
    got, plain = (images(Recipe(steps=4, plus_plus=flag)) for flag in (True, False))
    np.testing.assert_allclose(got, by_hand(guidance.Mix(plus_plus=True), 1.0), atol=1e-5)
    assert np.abs(got - plain).max() > 1e-3


# Scales apart from the rest -------------------------------------------------------------------------------------------------


def test_recipes_that_differ_in_scales_alone_share_their_static_part():
    first, strengths = Recipe(guidance=3.0, phi=0.7, classifier_scale=4.0, steps=9).split()
    second, others = Recipe(guidance=-1.5, phi=-0.2, classifier_scale=0.5, steps=9).split()
    assert first == second and hash(first) == hash(second) and first != Recipe(steps=8)
    assert [float(value) for value in strengths[:3]] == pytest.approx([3.0, 4.0, 0.7])
    assert [float(value) for value in others[:3]] == pytest.approx([-1.5, 0.5, -0.2])
    assert all(value.dtype == jnp.float32 and value.shape == () for value in strengths[:3])
    none, strengths = Recipe(steps=9).split()
    assert none == first and (strengths.guidance, strengths.phi, strengths.cads) == (None, None, None)


def test_recipes_that_differ_in_the_strength_of_cads_alone_share_their_static_part():
    first, strengths = Recipe(cads="s=0.2").split()
    second, others = Recipe(cads="tau1=0.6,psi=0.5").split()
    assert first == second and first.cads and {"s", "psi"}.isdisjoint(parse(first.cads)[1])
    assert strengths.cads == pytest.approx({"s": 0.2, "psi": 1.0}) and others.cads == pytest.approx({"s": 0.1, "psi": 0.5})
    for text in ("tau1=0.5", "statistics=batch", "rescale=False", ""):
        assert Recipe(cads=text).split()[0] != first


def test_cads_is_that_of_guidance():
    task, steps, options = make("ddpm"), 3, dict(s=0.4, psi=0.3, tau1=0.2, tau2=0.7)
    noise, times = per_image(jnp.arange(CLASSES)), Recipe(steps=steps).grid(task.process)
    k_start, k_run, _ = jax.random.split(jax.random.key(0), 3)
    denoise = guidance.CADS(task.process.unit, **options, noise=noise)(task.denoiser(PARAMS))
    x = start(task.process, times, k_start, (CLASSES, *SHAPE), noise)
    cond = task.embed(PARAMS, {"label": np.arange(CLASSES)})
    want = sample(denoise, Recipe().make_sampler(task, noise), x, times, cond, k_run)
    text = ",".join(f"{name}={value}" for name, value in options.items())
    np.testing.assert_allclose(images(Recipe(steps=steps, cads=text)), want, atol=1e-5)


def test_using_changes_a_copy():
    recipe = Recipe(steps=9)
    assert recipe.using(guidance=2.0, steps="12") == Recipe(steps=12, guidance=2.0) and recipe == Recipe(steps=9)
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        recipe.using(stepps=3)
