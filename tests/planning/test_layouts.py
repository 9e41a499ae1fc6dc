"""What is counted of a config, and the layouts that it may have."""
import math
from dataclasses import replace

import pytest
from pages import page

from diffusion_jax.cost.chips import topology
from diffusion_jax.planning import layouts
from diffusion_jax.planning.layouts import Layout
from diffusion_jax.train.state import plain


@pytest.mark.slow
def test_the_work_of_a_step(work):
    params = layouts.size(work.state.params)
    assert layouts.size(work.state.opt_state) == pytest.approx(2 * params, rel=0.01)
    assert layouts.size(work.state.ema) == params
    assert set(work.batch) == {"image", "label"} and work.batch["image"].shape == (16, 8, 8, 1)
    of_model = sum(work.model_flops.values())
    assert of_model < work.flops < 1.5 * of_model  # remat='full'
    double = work.of_batch(32)
    assert double.flops == 2 * work.flops and double.batch["label"].shape == (32,)


def test_what_is_kept_for_each_example_is_no_copy_of_the_weights(work):
    assert 0 <= work.copies < 0.1 * layouts.size(work.state.params) < work.saved
    assert work.of_batch(32).saved == 2 * work.saved and work.of_batch(32).copies == work.copies


def test_every_layout_uses_all_chips_and_divides_the_batch(work):
    every = list(layouts.candidates(work, 16))
    assert all(math.prod(layout.sides) == 16 for layout in every) and len(set(every)) == len(every)
    assert {Layout(16, 1, 1), Layout(1, 16, 1, "use"), Layout(2, 2, 4, "step")} < set(every)
    # 16 rows over 32 chips
    assert all(layout.tensor > 1 for layout in layouts.candidates(work, 32))


@pytest.mark.parametrize("chips", [1, 2, 6, 8, 12])
def test_layouts_are_all_that_there_are(work, chips):
    """Against every triple of numbers whose product is that of the chips."""
    sides = range(1, chips + 1)
    triples = [(d, f, t) for d in sides for f in sides for t in sides if d * f * t == chips]
    powers = {(d, f, t) for d, f, t in triples if f & (f - 1) == 0 and t in (1, 2, 4, 8)}
    expected = {(d, f, t, "step") for d, f, t in powers if 16 % (d * f) == 0}
    expected |= {(d, f, t, "use") for d, f, t, _ in expected if f > 1}
    assert set(layouts.candidates(work, chips)) == expected


def test_splitting_saves_memory_and_costs_traffic(work):
    machine = topology("v5e:4x4")
    three = (Layout(16, 1, 1), Layout(1, 16, 1), Layout(1, 16, 1, "use"))
    whole, split, late = (layouts.estimate_of(work, layout, machine) for layout in three)
    assert whole.parts["optimiser"] > 10 * split.parts["optimiser"]
    assert late.memory < split.memory < whole.memory
    assert whole.compute == split.compute and late.traffic > split.traffic > 0


def test_layouts_that_fit_come_first(work):
    machine = topology("v5e:4x4")
    every = layouts.ranked(work, machine, layouts.candidates(work, 16))
    assert all(estimate.fits(machine.chip) for estimate in every)
    assert [e.seconds for e in every] == sorted(e.seconds for e in every)
    heavy = replace(work, saved=64 * machine.chip.memory)  # 4 chips' memory each, whatever
    memory = [e.memory for e in layouts.ranked(heavy, machine, layouts.candidates(work, 16))]
    assert memory == sorted(memory) and memory[0] > machine.chip.memory


@pytest.mark.slow
def test_a_null_text_is_counted_once_for_all():
    config = plain(page("sd3_medium"))
    counts = [layouts.work_of({**config, "task": {**config["task"], "drop": drop}}).model_flops
              for drop in ({}, {"vec": 0.3, "seq": 0.3})]
    assert counts[0] == counts[1] and any("clip_g" in name for name in counts[0])
