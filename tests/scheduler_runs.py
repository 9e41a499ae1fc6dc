"""Runs of diffusers' schedulers on a toy network, and the options that are run; tests and goldens of imports need both."""
from __future__ import annotations

import sys

import numpy as np

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ZERO_SNR = dict(prediction_type="v_prediction", rescale_betas_zero_snr=True)
EPS_END = dict(final_sigmas_type="sigma_min")
FLOW = dict(use_flow_sigmas=True, prediction_type="flow_prediction")
_RUNS = {
    "DDIM": {
        "": {},
        "sd": SD | dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        "trailing": dict(timestep_spacing="trailing"),
        "zero_snr": ZERO_SNR | dict(timestep_spacing="trailing"),
        "clip": dict(clip_sample_range=0.5, set_alpha_to_one=False),
        "threshold": dict(thresholding=True, prediction_type="sample"),
        "trailing_end": dict(timestep_spacing="trailing", set_alpha_to_one=False, clip_sample=False),
    },
    "PNDM": {
        "sd": SD | dict(skip_prk_steps=True, steps_offset=1),
        "trailing": dict(skip_prk_steps=True, timestep_spacing="trailing"),
        "clean": dict(skip_prk_steps=True, set_alpha_to_one=True),
    },
    "DDPM": {
        "": {},
        "linspace": dict(timestep_spacing="linspace", clip_sample=False),
        "log": dict(variance_type="fixed_small_log"),
        "large": dict(variance_type="fixed_large", timestep_spacing="trailing", clip_sample=False),
        "cosine": dict(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"),
        "zero_snr": ZERO_SNR | dict(timestep_spacing="trailing"),
        "threshold": dict(thresholding=True, clip_sample=False),
    },
    "EulerDiscrete": {
        "": {},
        "sd": SD,
        "leading": SD | dict(timestep_spacing="leading", steps_offset=1),
        "trailing": dict(timestep_spacing="trailing"),
        "karras": SD | dict(use_karras_sigmas=True),
        "exponential": dict(use_exponential_sigmas=True, timestep_spacing="leading"),
        "beta": SD | dict(use_beta_sigmas=True),
        "ends": SD | dict(use_karras_sigmas=True, sigma_min=0.1, sigma_max=10.0),
        "zero_snr": ZERO_SNR | dict(timestep_spacing="trailing"),
        "zero_snr_karras": ZERO_SNR | dict(use_karras_sigmas=True),
        "sigma_min": SD | EPS_END,
        "sample": dict(prediction_type="sample"),
        "short": dict(num_train_timesteps=100),
    },
    "EulerAncestralDiscrete": {
        "": {},
        "sd": SD,
        "v": SD | dict(prediction_type="v_prediction", timestep_spacing="trailing"),
        "zero_snr": ZERO_SNR,
        "leading": SD | dict(timestep_spacing="leading"),
    },
    "HeunDiscrete": {
        "": {},
        "karras": dict(use_karras_sigmas=True),
        "leading": dict(timestep_spacing="leading", prediction_type="v_prediction"),
        "beta": dict(use_beta_sigmas=True),
        "clip": dict(clip_sample=True),
        "exponential": dict(use_exponential_sigmas=True),
    },
    "DPMSolverMultistep": {
        "": {},
        "sd": SD,
        "karras": SD | dict(use_karras_sigmas=True),
        "lu": SD | dict(use_lu_lambdas=True),
        "exponential": SD | dict(use_exponential_sigmas=True),
        "beta": SD | dict(use_beta_sigmas=True),
        "leading": SD | dict(timestep_spacing="leading", steps_offset=1),
        "trailing": SD | dict(timestep_spacing="trailing"),
        "order_1": SD | dict(solver_order=1),
        "order_3": SD | dict(solver_order=3),
        "heun": SD | dict(solver_type="heun"),
        "sde": SD | dict(algorithm_type="sde-dpmsolver++"),
        "eps": SD | EPS_END | dict(algorithm_type="dpmsolver"),
        "sde_eps": SD | EPS_END | dict(algorithm_type="sde-dpmsolver"),
        "deis": SD | EPS_END | dict(algorithm_type="deis", solver_type="logrho"),
        "sigma_min": SD | EPS_END,
        "long": SD | EPS_END | dict(lower_order_final=False, solver_order=3),
        "euler_end": SD | EPS_END | dict(euler_at_final=True, lower_order_final=False),
        "karras_end": SD | EPS_END | dict(use_karras_sigmas=True),
        "zero_snr": ZERO_SNR,
        "zero_snr_karras": ZERO_SNR | dict(use_karras_sigmas=True),
        "threshold": SD | dict(thresholding=True),
        "sample": dict(prediction_type="sample"),
        "cosine": dict(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1),
        "flow": FLOW,
        "flow_shift": FLOW | dict(flow_shift=3.0),
    },
    "UniPCMultistep": {
        "": {},
        "sd": SD,
        "karras": SD | dict(use_karras_sigmas=True),
        "exponential": SD | dict(use_exponential_sigmas=True),
        "beta": SD | dict(use_beta_sigmas=True),
        "ends": SD | dict(use_karras_sigmas=True, sigma_min=0.1, sigma_max=10.0),
        "leading": SD | dict(timestep_spacing="leading", steps_offset=1),
        "trailing": SD | dict(timestep_spacing="trailing"),
        "order_1": SD | dict(solver_order=1),
        "order_3": SD | dict(solver_order=3, disable_corrector=[0]),
        "bh1": SD | EPS_END | dict(solver_type="bh1"),
        "eps": SD | EPS_END | dict(predict_x0=False),
        "eps_bh1": SD | EPS_END | dict(predict_x0=False, solver_type="bh1", solver_order=3),
        "v": SD | dict(prediction_type="v_prediction", solver_type="midpoint"),
        "sample": dict(prediction_type="sample"),
        "long": SD | EPS_END | dict(lower_order_final=False, solver_order=3),
        "late": SD | dict(disable_corrector=[0, 1, 2]),
        "zero_snr": ZERO_SNR,
        "threshold": SD | dict(thresholding=True),
        "cosine": dict(beta_schedule="squaredcos_cap_v2"),
        "flow": FLOW,
        "flow_shift": FLOW | dict(flow_shift=3.0, solver_order=3),
    },
    "DEISMultistep": {
        "": {},
        "sd": SD,
        "order_1": SD | dict(solver_order=1),
        "order_3": SD | dict(solver_order=3),
        "karras": SD | dict(use_karras_sigmas=True),
        "exponential": SD | dict(use_exponential_sigmas=True),
        "leading": SD | dict(timestep_spacing="leading", steps_offset=1),
        "trailing": dict(timestep_spacing="trailing", prediction_type="v_prediction"),
        "long": SD | dict(lower_order_final=False, solver_order=3),
        "sample": dict(prediction_type="sample"),
        "threshold": SD | dict(thresholding=True),
    },
    "LCM": {
        "": {},
        "v": dict(prediction_type="v_prediction"),
        "scaling": dict(timestep_scaling=0.01, original_inference_steps=100),
        "clip": dict(clip_sample=True, clip_sample_range=0.5),
        "sample": dict(prediction_type="sample", beta_schedule="linear"),
    },
}
RUNS = {f"{kind}{'_' * bool(name)}{name}": (f"{kind}Scheduler", options)
        for kind, runs in _RUNS.items() for name, options in runs.items()}
"""Name -> (class, options)."""
STEPS = 10


def scheduler(kind: str, options: dict, draws: np.ndarray):
    """A scheduler of diffusers that draws the given noise, [N, ...], one a step."""
    import diffusers
    import torch

    made = getattr(diffusers, kind)(**options)
    module, left = sys.modules[type(made).__module__], iter(draws)
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = lambda shape, **_: torch.tensor(next(left))
    return made


def toy_run(kind: str, options: dict, inputs: dict[str, np.ndarray], steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """(the times that the network is shown, each once; the last state of a run on the network A x + t / 1000 b)."""
    import torch

    made = scheduler(kind, options, inputs["noise"])
    made.set_timesteps(steps)
    x = torch.tensor(inputs["x_start"]) * made.init_noise_sigma
    a, b = torch.tensor(inputs["A"]), torch.tensor(inputs["b"])[None, :, None, None]
    for t in made.timesteps:
        out = torch.einsum("oc,bchw->bohw", a, made.scale_model_input(x, t)) + float(t) / 1000 * b
        x = made.step(out, t, x).prev_sample
    return np.unique(made.timesteps.numpy().astype(np.float32))[::-1], x.numpy()
