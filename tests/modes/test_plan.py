"""Plans: what is counted of a config, the layouts that it may have, and, where libtpu is installed, a program for TPUs."""
import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest
from pages import ROOT, page

from diffusion_jax.build import ConfigError
from diffusion_jax.cost.chips import topology
from diffusion_jax.modes import layouts, plan
from diffusion_jax.modes.layouts import Layout
from diffusion_jax.train.state import plain


@pytest.fixture(scope="module")
def work():
    config = page("digits")
    config.sharding = (("(qkv|fc1)/kernel$", ("fsdp", "tensor")), (".*", "fsdp"))
    return layouts.work_of(plain(config))


def test_the_work_of_a_step(work):
    sizes = layouts.size(work.state.params), layouts.size(work.state.opt_state), layouts.size(work.state.ema)
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.01) and sizes[2] == sizes[0]
    assert set(work.batch) == {"image", "label"} and work.batch["image"].shape == (16, 8, 8, 1)
    assert sum(work.model_flops.values()) < work.flops < 1.5 * sum(work.model_flops.values())      # remat='full'
    double = work.of_batch(32)
    assert double.flops == 2 * work.flops and double.batch["label"].shape == (32,)


def test_what_is_kept_for_each_example_is_no_copy_of_the_weights(work):
    assert 0 <= work.copies < 0.1 * layouts.size(work.state.params) < work.saved
    assert work.of_batch(32).saved == 2 * work.saved and work.of_batch(32).copies == work.copies


def test_every_layout_uses_all_chips_and_divides_the_batch(work):
    found = list(layouts.candidates(work, 16))
    assert all(math.prod(layout[:3]) == 16 for layout in found) and len(set(found)) == len(found)
    assert Layout(16, 1, 1) in found and Layout(1, 16, 1, "use") in found and Layout(2, 2, 4, "step") in found
    assert not [layout for layout in layouts.candidates(work, 32) if layout.tensor == 1]            # 16 rows over 32 chips


def test_splitting_saves_memory_and_costs_traffic(work):
    place = topology("v5e:4x4")
    whole, split, late = (layouts.estimate(work, layout, place)
                          for layout in (Layout(16, 1, 1), Layout(1, 16, 1), Layout(1, 16, 1, "use")))
    assert whole.parts["optimiser"] > 10 * split.parts["optimiser"]
    assert late.memory < split.memory < whole.memory
    assert whole.compute == split.compute and late.traffic > split.traffic > 0


def test_the_best_layout_is_told_for_gpus_too(work, tmp_path, capsys):
    options = {"topology": ["h100:8", "v5e:2x4"], "program": "estimate", "layout": ["8,1,1", "1,8,1,use"]}
    plan.run(plain(page("digits")), str(tmp_path), options)
    gpu, tpu = json.loads((tmp_path / "plan.json").read_text())
    assert gpu["chips"] == tpu["chips"] == 8 and gpu["model_flops"] == sum(gpu["layers"].values())
    assert {tuple(e["layout"]) for e in gpu["estimates"]} == {(8, 1, 1, "step"), (1, 8, 1, "use")}
    assert "DiT/blocks/mlp/fc1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"topology": ["v9:2x2"]}, "unknown chip"),
        ({"layout": ["all"]}, "a layout is"),
        ({"layout": ["16,1"]}, "three numbers from 1 on"),
        ({"layout": ["-16,-1,1"]}, "three numbers from 1 on"),
        ({"layout": ["4,2,1"]}, "of 8 chips, v5e:4x4 has 16"),
        ({"program": "trian"}, "did you mean 'train'"),
        ({"num": 3}, "option of mode plan"),
    ],
)
def test_mistakes(options, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        plan.run(plain(page("digits")), str(tmp_path), options)


def test_kernels_that_the_roofline_leaves_out_are_said(capsys):
    report = dict(memory={}, fits=True, peak=0, compile_s=0, collectives={}, bytes=0, work_s=0, hidden_s=0, exposed_s=0, step_s=0)
    for kernels in (0, 24):
        plan.say_compiled(report | {"kernels": kernels}, topology("v5e:2x4"))
        assert ("24 calls of unknown Pallas kernels are not in the roofline" in capsys.readouterr().out) == (kernels > 0)


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

