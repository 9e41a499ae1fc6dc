"""Schedulers of diffusers: what their configs become, against diffusers itself, and what is refused.

The times of many configs and states of some are goldens, samplers/imported_configs and imported_solvers; here are what is
announced and what is refused and, where diffusers is installed, its defaults and whole pipelines.
"""
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scheduler_runs import RUNS, SD, STEPS, scheduler

from diffusion_jax.build import ConfigError, build
from diffusion_jax.diffusion import scales
from diffusion_jax.diffusion.samplers import pairs_of, start
from diffusion_jax.pipelines.recipe import Recipe, Strengths
from diffusion_jax.pretrained import schedulers, sd
from diffusion_jax.train.state import task_of

EULER, DPM, DDIM, PNDM = (f"{name}Scheduler" for name in ("EulerDiscrete", "DPMSolverMultistep", "DDIM", "PNDM"))
UNIPC, DEIS, LCM = (f"{name}Scheduler" for name in ("UniPCMultistep", "DEISMultistep", "LCM"))
FLOW = dict(use_flow_sigmas=True, prediction_type="flow_prediction")


def grid(kind, steps=5, **options):
    ours = schedulers.read({"_class_name": kind, **options})
    return Recipe.of(ours.sample | {"steps": steps}).grid(build(ours.process))


TIMES = {                                      # of five steps, and where the last one ends
    "Euler": (EULER, {}, [999, 749.25, 499.5, 249.75, 0, -1]),
    "Euler, leading": (EULER, dict(timestep_spacing="leading", steps_offset=1), [801, 601, 401, 201, 1, -1]),
    "Euler, trailing": (EULER, dict(timestep_spacing="trailing"), [999, 799, 599, 399, 199, -1]),
    "Euler, final": (EULER, dict(final_sigmas_type="sigma_min"), [999, 749.25, 499.5, 249.75, 0, 0]),
    "DPM-Solver": (DPM, {}, [999, 799, 599, 400, 200, -1]),
    "DPM-Solver, leading": (DPM, dict(timestep_spacing="leading"), [830, 664, 498, 332, 166, -1]),
    "DPM-Solver, trailing": (DPM, dict(timestep_spacing="trailing", final_sigmas_type="sigma_min"), [999, 799, 599, 399, 199, 0]),
    "DDIM": (DDIM, {}, [800, 600, 400, 200, 0, -1]),
    "DDIM, end": (DDIM, dict(set_alpha_to_one=False, steps_offset=1), [801, 601, 401, 201, 1, 0]),
    "PNDM": (PNDM, dict(skip_prk_steps=True), [800, 600, 400, 200, 0, 0]),
    "DDPM": ("DDPMScheduler", dict(timestep_spacing="linspace"), [999, 749, 500, 250, 0, -1]),
    "UniPC": (UNIPC, {}, [999, 799, 599, 400, 200, -1]),
    "UniPC, levels": (UNIPC, dict(use_karras_sigmas=True, sigma_max=10.0, final_sigmas_type="sigma_min"),
                      [673.6655, 476.4272, 198.6388, 31.6412, 0, 0]),
    "UniPC of a flow": (UNIPC, FLOW, [1, 0.8002, 0.6004, 0.4006, 0.2008, 0]),
    "DEIS": (DEIS, {}, [999, 799, 599, 400, 200, 0]),
    "LCM": (LCM, {}, [999, 799, 599, 399, 199, -1]),
    "LCM of a short distillation": (LCM, dict(original_inference_steps=8), [999, 874, 624, 499, 249, -1]),
    "a key of another class": (EULER, dict(set_alpha_to_one=False, solver_order=3), [999, 749.25, 499.5, 249.75, 0, -1]),
}


@pytest.mark.parametrize("name", TIMES)
def test_times_are_those_of_the_class(name):
    kind, options, want = TIMES[name]
    np.testing.assert_allclose(grid(kind, **options), want, atol=1e-4)


SAMPLERS = {
    "sde": (DPM, dict(algorithm_type="sde-dpmsolver++"), "dpmpp_2m_sde"),
    "order": (DPM, dict(solver_order=3, lower_order_final=False), "dpm_solver,order=3,lower_order_final=False"),
    "plain": (DPM, {}, "dpmpp_2m"),
    "clip": (DDIM, {}, "ddim,clip=1.0"),
    "range": (DDIM, dict(clip_sample_range=2), "ddim,clip=2.0"),
    "threshold": (DDIM, dict(thresholding=True, clip_sample_range=2), "ddim,clip=1.0"),
    "no clip": (DDIM, dict(clip_sample=False), "ddim"),
    "parallel": ("DDIMParallelScheduler", dict(clip_sample=False), "ddim"),
    "variance": ("DDPMScheduler", dict(variance_type="fixed_large"), "ancestral,variance=fixed_large"),
    "log": ("DDPMScheduler", dict(variance_type="fixed_small_log"), "ancestral,variance=fixed_small"),
    "heun": ("HeunDiscreteScheduler", {}, "edm"),
    "UniPC": (UNIPC, {}, "unipc"),
    "UniPC, options": (UNIPC, dict(solver_order=3, predict_x0=False, disable_corrector=[1, 0], final_sigmas_type="sigma_min"),
                       "unipc,order=3,form=eps,uncorrected=2"),
    "UniPC, variant": (UNIPC, dict(solver_type="bh1", final_sigmas_type="sigma_min"), "unipc,variant=bh1"),
    "UniPC, of another class": (UNIPC, dict(solver_type="midpoint"), "unipc"),
    "DEIS": (DEIS, dict(algorithm_type="dpmsolver++", solver_type="heun"), "deis,order=2"),
    "DEIS, order": (DEIS, dict(solver_order=3, lower_order_final=False), "deis,lower_order_final=False"),
    "LCM": (LCM, {}, "lcm"),
    "LCM, scaling": (LCM, dict(timestep_scaling=5), "lcm,scaling=5.0"),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_are_those_of_the_class(name):
    kind, options, want = SAMPLERS[name]
    assert schedulers.read({"_class_name": kind, **options}).sample["sampler"] == want


def test_euler_starts_from_noise_alone_but_for_leading_times():
    p = build(schedulers.read({"_class_name": EULER, **SD}).process)
    assert schedulers.read({"_class_name": EULER, **SD}).sample["temperature"] == pytest.approx(float(p.sigma(999)), abs=1e-6)
    assert "temperature" not in schedulers.read({"_class_name": EULER, "timestep_spacing": "leading"}).sample


REFUSED = {
    "no class of ours": (dict(_class_name="KDPM2DiscreteScheduler"), "diffusers' 'KDPM2DiscreteScheduler': give"),
    "no class": (dict(_class_name=["DDIMScheduler"]), "no sampler here is diffusers'"),
    "LMS": (dict(_class_name="LMSDiscreteScheduler"), "no sampler here is diffusers' 'LMS"),
    "Runge-Kutta": (dict(_class_name=PNDM), "skip_prk_steps False of PNDMScheduler.*set it to true"),
    "mixed v": (dict(_class_name=PNDM, skip_prk_steps=True, prediction_type="v_prediction"), "that predict 'v_prediction'"),
    "steps that do not meet": (dict(_class_name=DDIM, timestep_spacing="linspace"), "do not meet.*leading or trailing"),
    "betas of its own": (dict(_class_name=EULER, trained_betas=[0.1, 0.2]), "trained_betas"),
    "another schedule": (dict(_class_name="DDPMScheduler", beta_schedule="sigmoid"), "the scheduler's betas 'sigmoid'"),
    "laplace": (dict(_class_name=EULER, beta_schedule="laplace"), "betas 'laplace'"),
    "log_linear": (dict(_class_name=EULER, interpolation_type="log_linear"), "interpolation_type 'log_linear'"),
    "continuous": (dict(_class_name=EULER, timestep_type="continuous"), "timestep_type 'continuous'"),
    "two kinds of levels": (dict(_class_name=EULER, use_karras_sigmas=True, use_beta_sigmas=True), "sigmas and use_beta_sigmas"),
    "learned variance": (dict(_class_name="DDPMScheduler", variance_type="learned_range"), "unknown variance_type"),
    "a largest value": (dict(_class_name=DPM, thresholding=True, sample_max_value=1.5), "set sample_max_value to 1"),
    "eps to zero": (dict(_class_name=DPM, algorithm_type="dpmsolver"), "set final_sigmas_type to sigma_min"),
    "eps of nothing": (dict(_class_name=DDIM, rescale_betas_zero_snr=True), "set prediction_type to v_prediction"),
    "flow without a flow": (dict(_class_name=DPM, prediction_type="flow_prediction"), "flow_prediction"),
    "v of a flow": (dict(_class_name=DPM, use_flow_sigmas=True), "use_flow_sigmas goes with prediction_type flow_prediction"),
    "a shift by size": (dict(_class_name=DPM, use_dynamic_shifting=True), "use_dynamic_shifting True"),
    "an unknown spacing": (dict(_class_name=EULER, timestep_spacing="trailin"), "did you mean 'trailing'"),
    "an unknown end": (dict(_class_name=EULER, final_sigmas_type="one"), "unknown final_sigmas_type"),
    "an unknown order": (dict(_class_name=DPM, solver_order=4), "solver_order .* is 1 ... 3"),
    "an unknown algorithm": (dict(_class_name=DPM, algorithm_type="dpm"), "unknown algorithm_type"),
    "a text for a number": (dict(_class_name=DDIM, num_train_timesteps="1000"), "is a number, got '1000'"),
    "a text for a truth": (dict(_class_name=DDIM, clip_sample="false"), "is true or false, got 'false'"),
    "null": (dict(_class_name=DDIM, beta_start=None), "beta_start .*is a number, got None"),
    "NaN": (dict(_class_name=DDIM, beta_end=float("nan")), "not finite"),
    "a table of a billion": (dict(_class_name=DDIM, num_train_timesteps=10**9), "1 ... 100000"),
    "no table": (dict(_class_name=DDIM, num_train_timesteps=0), "1 ... 100000"),
    "UniPC of eps to zero": (dict(_class_name=UNIPC, predict_x0=False), "predict_x0 false cannot end at noise 0"),
    "bh1 to zero": (dict(_class_name=UNIPC, solver_type="bh1"), "solver_type bh1 cannot end at noise 0"),
    "high order to zero": (dict(_class_name=UNIPC, lower_order_final=False), "lower_order_final false cannot end at noise 0"),
    "a corrector now and then": (dict(_class_name=UNIPC, disable_corrector=[0, 4]), "for the first steps alone"),
    "no list of steps": (dict(_class_name=UNIPC, disable_corrector="0"), "disable_corrector .* is a list of steps"),
    "another predictor": (dict(_class_name=UNIPC, solver_p="DDIMScheduler"), "solver_p 'DDIMScheduler'"),
    "an end above 0": (dict(_class_name=UNIPC, shift_terminal=0.1, **FLOW), "shift_terminal 0.1"),
    "noise that is left": (dict(_class_name=UNIPC, use_karras_sigmas=True, sigma_min=0.1, final_sigmas_type="sigma_min"),
                           "leaves noise in the image"),
    "DEIS of a flow": (dict(_class_name=DEIS, **FLOW), "stops before the image is clean"),
    "more than the table has": (dict(_class_name=LCM, original_inference_steps=2000), "original_inference_steps .* 1 ... 1000"),
    "a scaling of nothing": (dict(_class_name=LCM, timestep_scaling=0), "timestep_scaling"),
    "a list": (dict(_class_name=DDIM, timestep_spacing=["leading"]), "is a word, got"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_is_refused_in_one_line(name):
    config, says = REFUSED[name]
    with pytest.raises(ConfigError, match=says) as error:
        schedulers.read(config)
    assert "\n" not in str(error.value)


ANNOUNCED = {
    "keys of newer classes": (dict(_class_name=EULER, golden_ratio=True, _diffusers_version="1.0"), False, "golden_ratio"),
    "no class": ({}, False, "names no _class_name: read as DDIMScheduler"),
    "an offset": (dict(_class_name=DDIM, clip_sample=False), True, "steps_offset 0: read as 1"),
    "clipping": (dict(_class_name=DDIM, steps_offset=1), True, "clip_sample True: read as False"),
    "noise at the end": (dict(_class_name="DDPMScheduler", variance_type="fixed_large", steps_offset=1), False, "adds noise"),
}


@pytest.mark.parametrize("name", ANNOUNCED)
def test_what_differs_is_announced(name, capsys):
    config, stable, says = ANNOUNCED[name]
    schedulers.read(config, stable)
    out = capsys.readouterr().out
    assert says in out and out.count("\n") == 1


@pytest.mark.parametrize("config", [
    dict(_class_name=DDIM, clip_sample=False, steps_offset=1, skip_prk_steps=True, _diffusers_version="0.6.0"),
    dict(_class_name=EULER, clip_sample=False, steps_offset=0, sample_max_value=1.0, set_alpha_to_one=False),
])
def test_published_configs_say_nothing(config, capsys):
    schedulers.read(config, stable=True)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("kind", schedulers.CLASSES)
def test_defaults_are_those_of_diffusers(kind):
    diffusers = pytest.importorskip("diffusers")
    parameters = inspect.signature(getattr(diffusers, kind)).parameters
    assert {name: p.default for name, p in parameters.items()} == schedulers.CLASSES[kind]


# Whole pipelines ------------------------------------------------------------------------------------------------------------

PIPELINES = [name for name in RUNS if "_flow" not in name]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(folder, the parts in it) of a random pipeline of each prediction; networks are compiled once."""
    from pretrained.test_sd import parts

    made = {}
    for prediction in ("epsilon", "v_prediction"):
        folder = tmp_path_factory.mktemp(prediction)
        *_, unet, vae, text, _ = parts(prediction)
        for name, part in (("unet", unet), ("vae", vae), ("text_encoder", text)):
            part.save_pretrained(folder / name)
        made[prediction] = folder, unet, vae, text, []
    return made


def compiled(task, params, cache):
    """The network of a task, compiled once for all schedulers."""
    if not cache:
        cache.append(jax.jit(lambda *args: task.model.apply({"params": params["model"]}, *args)))
    return cache[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_final_latents_are_those_of_diffusers_pipeline(name, folders):
    """Guidance 3, 10 steps, the same weights and noise: less than 1 % of the latents' deviation apart on average."""
    torch, diffusers = (pytest.importorskip(module) for module in ("torch", "diffusers"))
    kind, options = RUNS[name]
    folder, unet, vae, text, cache = folders["v_prediction" if options.get("prediction_type") == "v_prediction" else "epsilon"]
    rng = np.random.default_rng(0)
    tokens = np.full((2, 77), 49407)
    tokens[:, 0], tokens[:, 1:6] = 49406, rng.integers(0, 49000, (2, 5))
    noise = rng.standard_normal((2, 4, 8, 8)).astype(np.float32)
    draws = rng.standard_normal((2 * STEPS, 2, 4, 8, 8)).astype(np.float32)
    made = scheduler(kind, options, draws)
    (folder / "scheduler").mkdir(exist_ok=True)
    made.save_config(folder / "scheduler")
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=None, unet=unet, scheduler=made, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    page, params = sd.load(folder)
    task, raw = task_of(page), {"tokens": jnp.asarray(tokens, jnp.int32)}
    with torch.no_grad():
        seen, empty = (text(torch.tensor(np.array(t, np.int64)))[0] for t in (tokens, task.cond.null(raw)["tokens"]))
        want = pipe(
            prompt_embeds=seen, negative_prompt_embeds=empty, latents=torch.tensor(noise), guidance_scale=3.0,
            num_inference_steps=STEPS, output_type="latent",
        ).images.numpy()

    recipe = Recipe.of({**page["sample"], "steps": STEPS, "guidance": 3.0})
    left = iter(np.moveaxis(draws, 2, -1))
    guide = recipe.make_guidance(task, Strengths(jnp.float32(3)), task.embed(params, task.cond.null(raw)), None)
    denoise, cond = guide(scales.denoiser(compiled(task, params, cache), task.process, task.scale)), task.embed(params, raw)
    times = recipe.grid(task.process)
    x = recipe.temperature * start(task.process, times, jax.random.key(0), (2, 8, 8, 4), lambda *_: np.moveaxis(noise, 1, -1))
    sampler = recipe.make_sampler(task, lambda *_: jnp.asarray(next(left)))
    state = sampler.init(x, STEPS)

    def step(x, state, t, s):
        return sampler.step(lambda x, t, key: denoise(x, t, cond, key), x, state, t, s, jax.random.key(0))

    # Those with a conditional would compile the network again at each step; they draw nothing.
    step = jax.jit(step) if recipe.sampler in ("plms", "edm") else step
    for t, s in pairs_of(times):
        x, state = step(x, state, t, s)
    off = np.abs(np.moveaxis(np.asarray(x), -1, 1) - want).mean() / want.std()
    print(json.dumps({"scheduler": name, "off": round(float(100 * off), 4), "std": round(float(want.std()), 3)}))
    assert off < 0.01
