"""The scheduler of flows, both ways; its times are in tests/diffusion/test_flow_times.py."""
import pytest
from sd3_parts import page

from diffusion_jax.build import ConfigError
from diffusion_jax.pretrained import sd3_scheduler


@pytest.mark.parametrize("options, times", [
    ({}, "flow_match"), ({"use_karras_sigmas": True}, "flow_match,levels=karras"),
    ({"use_exponential_sigmas": True, "shift_terminal": 0.1}, "flow_match,levels=exponential,terminal=0.1"),
    ({"use_beta_sigmas": True}, "flow_match,levels=beta"),
])
def test_a_config_comes_back(options, times):
    config = {"_class_name": sd3_scheduler.KIND, "shift": 2.5} | options
    scheduler = sd3_scheduler.read(config)
    assert scheduler.process == {"name": sd3_scheduler.PROCESS, "shift": 2.5} and scheduler.prediction == "flow_prediction"
    assert scheduler.sample == {"sampler": "euler", "times": times}
    spec = page(t5=False)
    spec["task"]["process"] = scheduler.process
    written, notes = sd3_scheduler.write(spec | {"sample": scheduler.sample})
    assert notes == () and {key: written[key] for key in config} == config
    assert sd3_scheduler.read(written) == scheduler


@pytest.mark.parametrize("options, says", [
    ({"use_dynamic_shifting": True}, "set it to false, and shift"), ({"stochastic_sampling": True}, "draw nothing"),
    ({"invert_sigmas": True}, "from noise to images"), ({"num_train_timesteps": 500}, "num_train_timesteps 500"),
    ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "set all but one to false"), ({"shift": 0}, "shift of"),
    ({"shift": "3"}, "shift"), ({"_class_name": "EulerDiscreteScheduler"}, "velocities of a flow"),
])
def test_what_has_no_counterpart_is_refused_in_one_line(options, says):
    with pytest.raises(ConfigError, match=says) as error:
        sd3_scheduler.read({"_class_name": sd3_scheduler.KIND} | options)
    assert "\n" not in str(error.value)


def test_solvers_of_flows_are_those_of_the_other_table():
    config = {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 3.0,
              "prediction_type": "flow_prediction"}
    scheduler = sd3_scheduler.read(config)
    assert scheduler.process["shift"] == 3.0 and scheduler.sample["times"] == "scheduler"


def test_other_samplers_are_announced_and_other_processes_refused():
    spec = page(t5=False)
    written, notes = sd3_scheduler.write(spec | {"sample": {"sampler": "dpmpp_2m", "times": "scheduler"}})
    assert written["shift"] == 3.0 and "dpmpp_2m at times scheduler" in notes[0]
    spec["task"]["process"] = {"name": "diffusion_jax.diffusion.process:DDPM"}
    with pytest.raises(ConfigError, match="velocities of a flow"):
        sd3_scheduler.write(spec)
