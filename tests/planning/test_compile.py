"""Programs for chips that are not there: what the compiler is given, what is read of its text."""
import gzip
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.cost import compiler, gpu
from diffusion_jax.cost.chips import GIB, collective_seconds, topology
from diffusion_jax.cost.hlo import Collective
from diffusion_jax.planning import compile as planning
from diffusion_jax.planning import layouts
from diffusion_jax.planning.layouts import Layout
from diffusion_jax.train import shard

MACHINE = topology("v5e:2x4")


@pytest.fixture
def here(monkeypatch):
    """The machine's chips are the eight devices of the tests."""
    monkeypatch.setattr(planning, "mesh_of", lambda machine, layout: shard.make_mesh(*layout.sides))


def product(*shape):
    return jax.jit(lambda x: x @ x.T).lower(jax.ShapeDtypeStruct(shape, jnp.float32))


def compiled_here(lower, *args, machine_code):
    return compiler.Compiled(lower(*args).compile().as_text(), 2 * GIB)


def test_the_step_that_is_compiled_is_the_one_that_was_counted(here, work):
    lowered = planning.lower_train(work, MACHINE, Layout(2, 4, 1, "use"))
    assert [shape.shape for shape in jax.tree.leaves(lowered.args_info[0][0].params)] == [
        leaf.shape for leaf in jax.tree.leaves(work.state.params)
    ]
    assert "sharding" in lowered.as_text() or "sdy" in lowered.as_text()


def test_the_sampler_makes_the_batch(here, work):
    lowered = planning.lower_sampler(work, MACHINE, Layout(8, 1, 1))
    assert lowered.out_info.shape == (16, 8, 8, 1)
    assert planning.recipe_of(work).steps == work.config["sample"]["steps"]


def test_what_has_no_sampler_is_refused(work):
    with pytest.raises(ConfigError, match="samplers of diffusion tasks are planned"):
        planning.compile_sampler(replace(work, task=SimpleNamespace()), MACHINE, False)


def test_a_sampler_for_gpus_needs_their_compiler(work, monkeypatch):
    monkeypatch.setattr(gpu, "installed", lambda: False)
    with pytest.raises(ConfigError, match="no compiler for h100:8"):
        planning.compile_sampler(work, topology("h100:8"), False)


def test_a_program_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr(compiler, "compiled", compiled_here)
    mesh = SimpleNamespace(devices=np.array([], object))
    file = tmp_path / "program.gz"
    report = planning.program_of(mesh, MACHINE, file, True, product, 128, 64)
    assert report["fits"] and report["peak"] == 2 * GIB and report["flops"] == 2 * 128 * 128 * 64
    assert report["collectives"] == {} and report["kernels"] == 0
    assert report["step_s"] == report["work_s"] > 0 and report["xla_s"] > 0
    assert b"ENTRY" in gzip.decompress(file.read_bytes())


def test_a_program_that_does_not_fit_says_so(monkeypatch):
    def full(*args, machine_code):
        raise compiler.OutOfMemory("Used 20G of 15.75G hbm")

    monkeypatch.setattr(compiler, "compiled", full)
    report = planning.program_of(None, MACHINE, None, False, product, 8, 8)
    assert not report["fits"] and report["note"] == "Used 20G of 15.75G hbm"
    assert set(report) == {"fits", "note", "compile_s"}


def test_memory_of_a_step_is_told_part_by_part(here, monkeypatch, tmp_path, work):
    program = {"fits": True, "peak": 10 * GIB, "step_s": 2.0}
    monkeypatch.setattr(planning, "program_of", lambda *args: program)
    guess = layouts.estimate_of(work, Layout(1, 8, 1, "use"), MACHINE)
    report = planning.compile_train(work, MACHINE, guess, tmp_path, False)
    assert report["layout"] == [1, 8, 1, "use"] and report["estimate"] == guess.memory
    assert sum(report["memory"].values()) == pytest.approx(10 * GIB)
    assert report["memory"]["optimiser"] == guess.parts["optimiser"]
    peak = 8 * MACHINE.chip.flops
    assert report["mfu"] == pytest.approx(sum(work.model_flops.values()) / 2.0 / peak)


def test_hidden_collectives_run_beside_the_work():
    devices = np.array([SimpleNamespace(coords=(i, j, 0)) for i in range(2) for j in range(4)])
    mesh = SimpleNamespace(devices=devices.reshape(8, 1, 1))
    row = (0, 1, 2, 3)
    once = collective_seconds(MACHINE, "all-gather", 1e6, [(0, j) for j in row])
    collectives = [
        Collective("all-gather", 1e6, row, 3, hidden=True),
        Collective("all-gather", 1e6, row, 2, hidden=False),
    ]
    links = planning.links_of(collectives, mesh, MACHINE)
    assert (links.hidden, links.exposed) == pytest.approx((3 * once, 2 * once))
    assert links.totals["all-gather"]["number"] == 5 and links.totals["all-gather"]["bytes"] == 5e6
    assert links.step(0.0) == pytest.approx(5 * once)
    assert links.step(10.0) == pytest.approx(10 + 2 * once)
