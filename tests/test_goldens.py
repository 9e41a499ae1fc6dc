"""Official numbers: one test for every case file, computed by the routine `golden_routines/<system>.py:<kind>`.

GOLDENS names another folder of cases. A case without a routine fails.
"""
from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import golden_case
import pytest

SLOW = (
    "edm2/edm2_loss_grads", "ldm/plosses_eps_l2", "lora/merge_kohya_locon", "sdxl/unet_base", "sdxl/keys_sdxl_base_diffusers",
    "sd3/keys_sd35_large_diffusers", "sd3/keys_sd35_medium_diffusers",
    "sd3/trajectory_img2img", "sd3/trajectory_skip_layers", "sd3/transformer_lowvar", "sd3/transformer_sd35_medium_skip",
    "sdxl/trajectory_euler_rescale", "sdxl/trajectory_refiner_img2img", "sdxl/unet_base_lowvar", "sdxl/unet_refiner",
)
"""Cases that take seconds to compile or to trace, beside another one of the same kind."""
FOLDER = Path(os.environ.get("GOLDENS", Path(__file__).parent / "goldens"))


def cases() -> list:
    """Every case file, named '<system>/<case>'."""
    found = []
    for file in sorted(FOLDER.rglob("*.json")):
        doc = json.loads(file.read_text())
        name = f"{doc['system']}/{doc['case']}"
        marks = pytest.mark.slow if name in SLOW else ()
        found.append(pytest.param(file, doc["system"], doc["kind"], id=name, marks=marks))
    assert found, f"no cases in {FOLDER}"
    return found


@pytest.mark.parametrize("file, system, kind", cases())
def test_golden(file: Path, system: str, kind: str):
    routine = getattr(importlib.import_module(f"golden_routines.{system}"), kind)
    case = golden_case.load(file)
    problems = golden_case.compare(case, routine(case))
    assert not problems, "; ".join(problems)
