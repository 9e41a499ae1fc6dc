"""Schedulers of diffusers that are written: what is read of them is what the page said, for every class that is read."""
import pytest
from scheduler_runs import RUNS

from diffusion_jax.build import ConfigError
from diffusion_jax.pretrained import schedulers, schedulers_export
from diffusion_jax.pretrained.schedulers import Scheduler

SCALES = {prediction: dict(name=f"diffusion_jax.diffusion.scales:{name}")
          for name, prediction in schedulers_export.PREDICTIONS.items()}
DDPM = "diffusion_jax.diffusion.process:DDPM"


def page(process, scale="Eps", **sample):
    return dict(task=dict(process=dict(process), scale=dict(name=f"diffusion_jax.diffusion.scales:{scale}")), sample=sample)


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("name", RUNS)
def test_what_is_written_reads_as_it_was(name, stable):
    kind, options = RUNS[name]
    ours = schedulers.read({"_class_name": kind, **options}, stable)
    config = schedulers_export.write(ours.process, SCALES[ours.prediction], ours.sample, stable)
    assert config["_class_name"] == kind
    assert schedulers.read(config, stable) == ours


WORDS = {                                     # of pages that were written by hand, and the class and options that they mean
    "Stable Diffusion": (dict(name=DDPM, schedule="scaled_linear"), dict(times="leading,offset=1,last=0"), "DDIMScheduler",
                         dict(steps_offset=1, set_alpha_to_one=False, clip_sample=False, beta_start=0.00085, beta_end=0.012)),
    "plain": (dict(name=DDPM), dict(sampler="dpmpp_2m", times="scheduler,whole=True,spare=1"), "DPMSolverMultistepScheduler", {}),
    "cosine": (dict(name=DDPM, schedule="squaredcos"), dict(sampler="ancestral,variance=fixed_large", times="trailing", clip=1.0),
               "DDPMScheduler", dict(beta_schedule="squaredcos_cap_v2", clip_sample=True, variance_type="fixed_large")),
    "short": (dict(name=DDPM, steps=100), dict(times="trailing"), "DDIMScheduler", dict(num_train_timesteps=100, beta_end=0.2)),
}


@pytest.mark.parametrize("name", WORDS)
def test_pages_are_written_with_their_defaults(name):
    process, sample, kind, options = WORDS[name]
    config, notes = schedulers_export.of_page(page(process, **sample))
    assert notes == () and config["_class_name"] == kind and config.items() >= options.items()
    ours = schedulers.read(config)
    assert schedulers_export.canonical(ours) == schedulers_export.canonical(Scheduler(process, "epsilon", sample))


@pytest.mark.parametrize("process, scale, sample, kind, options", [
    (dict(name=DDPM), "Eps", dict(sampler="ancestral", times="respace", clip=1.0), "DDIMScheduler", dict(clip_sample=True)),
    (dict(name=DDPM, schedule="squaredcos"), "V", dict(times="uniform"), "DDIMScheduler", dict(timestep_spacing="trailing")),
    (dict(name="diffusion_jax.diffusion.process:Flow", shift=3.0), "Velocity", dict(sampler="heun", times="uniform"),
     "DPMSolverMultistepScheduler", dict(flow_shift=3.0, use_flow_sigmas=True)),
])
def test_what_samples_as_no_class_does_has_a_stand_in_and_says_so(process, scale, sample, kind, options):
    config, notes = schedulers_export.of_page(page(process, scale, **sample))
    assert config["_class_name"] == kind and config.items() >= options.items()
    assert len(notes) == 1 and f"{kind} stands in" in notes[0] and sample["times"] in notes[0]


@pytest.mark.parametrize("process, scale, says", [
    (dict(name="diffusion_jax.diffusion.process:EDM"), "EDM", "predict EDM under EDM: --to original"),
    (dict(name="diffusion_jax.diffusion.process:Cosine"), "Eps", "process Cosine"),
    (dict(name=DDPM, schedule="sigmoid"), "Eps", "DDPM sigmoid"),
    (dict(name="diffusion_jax.diffusion.process:Flow"), "V", "predict V under Flow"),
    (dict(name=DDPM, schedule="squaredcos", start=0.1), "Eps", "no scheduler of diffusers has the process"),
])
def test_a_process_that_no_class_has_is_refused(process, scale, says):
    with pytest.raises(ConfigError, match=says) as error:
        schedulers_export.of_page(page(process, scale))
    assert "\n" not in str(error.value)
