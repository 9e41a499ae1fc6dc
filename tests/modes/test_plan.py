"""Mode `plan`: its report, its mistakes and, where libtpu is installed, a program for TPUs."""
import importlib.util
import json
import os
import subprocess
import sys

import pytest
from pages import ROOT, ask, page

from diffusion_jax.build import ConfigError
from diffusion_jax.cost.chips import CHIPS, topology
from diffusion_jax.cost.units import scaled
from diffusion_jax.lineage.budget import plans_of
from diffusion_jax.lineage.stages import read
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
        ({"layout": ("١٦,1,1",)}, "a layout is"),
        ({"layout": ("9" * 5000 + ",1,1",)}, "a layout is"),
        ({"layout": ("16,1",)}, "three numbers from 1 on"),
        ({"layout": ("-16,-1,1",)}, "three numbers from 1 on"),
        ({"layout": ("4,2,1",)}, "of 8 chips, v5e:4x4 has 16"),
        ({"program": "trian"}, "did you mean 'train'"),
        ({"topology": ("v5e:4x4", "h100:8"), "machine_code": True}, "--machine_code is of TPUs, h100:8 are GPUs"),
        ({"program": "estimate", "machine_code": True}, "--program estimate compiles none"),
        ({"num": 3}, "--num belongs to modes"),
        ({"per_chip": 10**12}, "per_chip is 1 ... 2147483647, got 1000000000000"),
        ({"per_chip": 2**31 - 1}, "--per_chip on 16 chips, the batch, is 2147483647 or less, got 34359738352"),
    ],
)
def test_mistakes(options, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        ask("plan", tmp_path, config=plain(page("digits")), **options)


@pytest.mark.slow
def test_each_stage_of_a_lineage_is_planned(tmp_path, capsys):
    """Two chips at their peaks take as long as the operations of all training steps say, first stages that run in them included;
    unCLIP's prior has its CLIP though no folder holds one."""
    config = plain(page("lineage"))
    ask("plan", tmp_path, config=config, topology=("h100:1", "v5e:1x2"), program="estimate")
    reports = json.loads((tmp_path / "plan.json").read_text())
    trained = [stage["key"] for stage in config["stages"] if stage["page"]]
    assert [report["stage"] for report in reports if report["chips"] == 1] == trained
    steps = {key: one.steps for key, one in plans_of(read(config)).items()}
    for report in reports:
        if report["chips"] == 1:
            assert report["training_s"] == pytest.approx(steps[report["stage"]] * report["flops"] / CHIPS["h100"].flops)
    alone = sum(report["training_s"] for report in reports if report["chips"] == 1)
    last = capsys.readouterr().out.splitlines()[-2].split()
    assert last[:3] == ["in", "all", scaled(alone, "s").split()[0]]
    with pytest.raises(ConfigError, match="planned for training"):
        ask("plan", tmp_path, config=config, program="sample")


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
