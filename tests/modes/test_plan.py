"""Mode `plan`: its report, its mistakes and, where libtpu is installed, a program for TPUs."""
import importlib.util
import json
import os
import subprocess
import sys

import pytest
from pages import ROOT, ask, page

from diffusion_jax.build import ConfigError
from diffusion_jax.cost.chips import topology
from diffusion_jax.modes import plan
from diffusion_jax.train.state import plain


def test_the_best_layout_is_told_for_gpus_too(tmp_path, capsys):
    options = {"topology": ("h100:8", "v5e:2x4"), "program": "estimate", "layout": ("8,1,1", "1,8,1,use")}
    ask("plan", tmp_path, config=plain(page("digits")), **options)
    gpu, tpu = json.loads((tmp_path / "plan.json").read_text())
    assert gpu["chips"] == tpu["chips"] == 8 and gpu["model_flops"] == sum(gpu["layers"].values())
    assert {tuple(e["layout"]) for e in gpu["estimates"]} == {(8, 1, 1, "step"), (1, 8, 1, "use")}
    assert "DiT/blocks/mlp/fc1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"topology": ("v9:2x2",)}, "unknown chip"),
        ({"layout": ("all",)}, "a layout is"),
        ({"layout": ("16,1",)}, "three numbers from 1 on"),
        ({"layout": ("-16,-1,1",)}, "three numbers from 1 on"),
        ({"layout": ("4,2,1",)}, "of 8 chips, v5e:4x4 has 16"),
        ({"program": "trian"}, "did you mean 'train'"),
        ({"topology": ("v5e:4x4", "h100:8"), "machine_code": True}, "--machine_code is of TPUs, h100:8 are GPUs"),
        ({"num": 3}, "--num belongs to modes"),
    ],
)
def test_mistakes(options, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        ask("plan", tmp_path, config=plain(page("digits")), **options)


@pytest.mark.parametrize(("value", "text"), [
    (0, "0 FLOP"), (7, "7.00 FLOP"), (999, "999 FLOP"), (1e3, "1.00 kFLOP"), (22_190_080, "22.2 MFLOP"), (1.234e9, "1.23 GFLOP"),
    (5.25e14, "525 TFLOP"), (3.2e17, "320 PFLOP"), (3.2e22, "32,000 EFLOP"), (1.5e-3, "1.50 mFLOP"), (7.2e-7, "720 nFLOP"),
])
def test_numbers_have_a_unit_that_fits(value, text):
    assert plan.scaled(value, "FLOP") == text


def test_kernels_that_the_roofline_leaves_out_are_said(capsys):
    keys = ("peak", "compile_s", "bytes", "work_s", "hidden_s", "exposed_s", "step_s")
    report = {"memory": {}, "collectives": {}, "fits": True} | dict.fromkeys(keys, 0)
    for kernels in (0, 24):
        plan.print_program(report | {"kernels": kernels}, topology("v5e:2x4"))
        warning = "24 calls of unknown Pallas kernels are not in the roofline"
        assert (warning in capsys.readouterr().out) == (kernels > 0)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, which has an environment of its own")
@pytest.mark.parametrize("program", ["train", "sample"])
def test_a_program_for_tpus_is_compiled_without_one(tmp_path, program):
    command = [sys.executable, "-m", "diffusion_jax.main", "--mode", "plan", "--config", str(ROOT / "configs" / "digits.py:tiny"),
               "--workdir", str(tmp_path), "--topology", "v5e:2x4", "--program", program, "--layout", "1,8,1,use",
               "--config.model.depth=2"]                                            # of a single layer XLA recomputes nothing
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, cwd=ROOT, env=_quiet())
    assert done.returncode == 0, done.stderr
    (report,) = json.loads((tmp_path / "plan.json").read_text())
    found = report["compiled"][0] if program == "train" else report
    assert found["fits"] and found["step_s"] > 0 and found["flops"] > 0
    if program == "train":
        assert found["flops"] * 8 == pytest.approx(report["flops"], rel=0.01)
        assert found["collectives"]


def _quiet():
    return {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
