"""What counts, and who sees a bar."""
import io
import sys

import numpy as np
import pytest

from diffusion_jax.pipelines import progress
from diffusion_jax.pipelines.progress import Pace, paced


class Count:
    """A meter that only counts."""

    done = 0

    def update(self, n=1, /):
        self.done += n


@pytest.mark.parametrize(("steps", "want"), [(1, [1]), (11, [1, 2, 4, 4]), (15, [1, 2, 4, 8])])
def test_every_step_is_made_once_and_in_its_turn_and_counted(monkeypatch, steps, want):
    """By steps that take no time: twice as many in each part, up to the last."""
    monkeypatch.setattr(progress.time, "perf_counter", lambda: 0.0)
    made, counts = [], []

    class Parts(Count):
        def update(self, n=1, /):
            counts.append(n)
            assert len(made) == sum(counts)                                                 # not before they are made

    def step(x, first, last):
        made.extend(range(first, last))
        return x + last - first

    assert Pace(Parts()).made(step, np.zeros(()), steps) == steps
    assert made == list(range(steps)) and counts == want


def test_the_next_run_goes_on_with_parts_as_long(monkeypatch):
    monkeypatch.setattr(progress.time, "perf_counter", lambda: 0.0)
    lasts = []

    def step(x, first, last):
        lasts.append(last)
        return x

    pace = Pace(Count())
    for _ in range(2):
        pace.made(step, np.zeros(()), 7)
    assert lasts == [1, 3, 7, 7]


@pytest.mark.parametrize(("length", "seconds", "want"), [(1, 9.0, 1), (1, 0.001, 2), (8, 0.2, 8), (8, 0.05, 16), (8, 0.5, 4)])
def test_a_part_takes_about_as_long_as_a_person_waits(length, seconds, want):
    assert paced(length, seconds) == want


@pytest.mark.parametrize(("terminal", "process", "seen"), [(True, 0, True), (True, 1, False), (False, 0, False)])
def test_a_bar_is_seen_by_the_first_process_on_a_terminal(monkeypatch, terminal, process, seen):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("jax.process_index", lambda: process)
    assert progress.is_watched() == seen


@pytest.mark.parametrize(("total", "said"), [(4, "2/4"), (0, "")])
def test_a_bar_counts_its_units(capsys, total, said):
    with progress.bar(total, "step") as meter:
        assert not capsys.readouterr().err                                 # what is refused here is one line
        meter.update(2)
        meter.refresh()
    err = capsys.readouterr().err
    assert said in err and bool(err) == bool(said)


@pytest.mark.parametrize(("watched", "total", "counts"), [(True, 4, True), (True, 0, False), (False, 4, False)])
def test_steps_nobody_sees_have_no_meter(monkeypatch, capsys, watched, total, counts):
    monkeypatch.setattr(progress, "is_watched", lambda: watched)
    with progress.bar_of_steps(total) as meter:
        assert (meter is not None) == counts
        if meter is not None:
            meter.update(4)
            meter.refresh()
    assert ("4/4" in capsys.readouterr().err) == counts
