"""The schedulers of diffusers 0.42 that have a counterpart here: every option with its default, which differ from class to class.

A config holds what differs from the defaults; pretrained/schedulers.py reads it.
"""
from __future__ import annotations

import math
from typing import Any

Options = dict[str, Any]

_TABLE = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None,
          "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 0}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_ZERO_SNR = {"rescale_betas_zero_snr": False}
_LEVELS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False, "timestep_spacing": "linspace"}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0, "use_dynamic_shifting": False, "time_shift_type": "exponential"}
_OF_HEUN = {"beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
_DDIM = _TABLE | _CLIP | _THRESHOLD | _ZERO_SNR | {"set_alpha_to_one": True}
_DDPM = _TABLE | _CLIP | _THRESHOLD | _ZERO_SNR | {"variance_type": "fixed_small"}
CLASSES: dict[str, Options] = {
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "PNDMScheduler": _TABLE | {"skip_prk_steps": False, "set_alpha_to_one": False},
    "EulerDiscreteScheduler": _TABLE | _LEVELS | _ZERO_SNR | {
        "interpolation_type": "linear", "sigma_min": None, "sigma_max": None, "timestep_type": "discrete",
        "final_sigmas_type": "zero",
    },
    "EulerAncestralDiscreteScheduler": _TABLE | _ZERO_SNR | {"timestep_spacing": "linspace"},
    "HeunDiscreteScheduler": _TABLE | _CLIP | _LEVELS | _OF_HEUN,
    "DPMSolverMultistepScheduler": _TABLE | _THRESHOLD | _LEVELS | _ZERO_SNR | _FLOW | {
        "solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lower_order_final": True,
        "euler_at_final": False, "use_lu_lambdas": False, "final_sigmas_type": "zero", "lambda_min_clipped": -math.inf,
        "variance_type": None,
    },
    "UniPCMultistepScheduler": _TABLE | _THRESHOLD | _LEVELS | _ZERO_SNR | _FLOW | {
        "solver_order": 2, "predict_x0": True, "solver_type": "bh2", "lower_order_final": True, "disable_corrector": [],
        "solver_p": None, "final_sigmas_type": "zero", "sigma_min": None, "sigma_max": None, "shift_terminal": None,
    },
    "DEISMultistepScheduler": _TABLE | _THRESHOLD | _LEVELS | _FLOW | {
        "solver_order": 2, "algorithm_type": "deis", "solver_type": "logrho", "lower_order_final": True,
    },
    "LCMScheduler": _TABLE | _CLIP | _THRESHOLD | _ZERO_SNR | {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "original_inference_steps": 50,
        "clip_sample": False, "set_alpha_to_one": True, "timestep_scaling": 10.0,
    },
}
"""Class -> option -> its default."""
OF_OTHERS = {
    "shift", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "invert_sigmas", "stochastic_sampling",
    "sigma_data", "sigma_schedule", "rho", "predictor_order", "corrector_order", "tau_func", "noise_sampler_seed", "eta",
    "s_noise", "s_churn",
}
"""Keys of schedulers that have none, which a config keeps when its class is changed."""
