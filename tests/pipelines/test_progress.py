"""What counts, and who sees a bar."""
import io
import sys

import jax.numpy as jnp
import pytest

from diffusion_jax.pipelines import progress


class Count:
    """A meter that only counts."""

    done = 0

    def update(self, n=1, /):
        self.done += n


def test_what_is_made_is_counted_once_and_stays_as_it_is():
    meter, x = Count(), jnp.arange(3)
    assert progress.counted(x, meter) is x and meter.done == 1 and progress.counted(x, None) is x


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
