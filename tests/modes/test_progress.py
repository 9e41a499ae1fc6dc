"""What a person sees while pictures are made: bars on a terminal, and animations of how they arise."""
from contextlib import contextmanager

import numpy as np
import pytest
from pages import ask, files
from PIL import Image
from pipelines.test_progress import Count

from diffusion_jax.build import ConfigError
from diffusion_jax.modes import edit, sample
from diffusion_jax.pipelines import progress, stream


@pytest.fixture
def terminal(monkeypatch):
    for module in (sample, progress):
        monkeypatch.setattr(module, "is_watched", lambda: True)


def images(folder, out, **options):
    ask("sample", folder, out=str(out), num=6, batch=4, **options)
    with np.load(out) as made:
        return made["arr_0"]


@pytest.mark.slow
def test_on_a_terminal_the_bar_counts_steps_and_the_pictures_are_the_same(tiny_run, tmp_path, terminal, monkeypatch, capsys):
    steps = dict(sampler="ancestral", times="respace", steps="12")
    got = images(tiny_run, tmp_path / "a.npz", **steps)
    said = capsys.readouterr().err
    assert "24/24" in said and "6/6 images" in said and "image/s" not in said           # of two batches
    monkeypatch.setattr(sample, "is_watched", lambda: False)
    np.testing.assert_array_equal(images(tiny_run, tmp_path / "b.npz", **steps), got)
    said = capsys.readouterr().err
    assert "6/6" in said and ("image/s" in said or "s/image" in said) and "24" not in said


def test_few_steps_have_a_bar_of_images(tiny_run, tmp_path, terminal, monkeypatch, capsys):
    monkeypatch.setattr(stream, "_begin", None)                            # nothing is made in parts
    assert len(images(tiny_run, tmp_path / "a.npz", steps="2", sampler="ddim")) == 6
    assert "6/6" in capsys.readouterr().err


def edited(folder, out, **options):
    ask("edit", folder, out=str(out), **options)
    return out.read_bytes()


def test_edits_count_their_steps_and_the_pictures_are_the_same(tiny_run, tmp_path, terminal, monkeypatch, capsys):
    sweep = dict(op="switch", label=3, to_label=7, values=("0,2,5",), num=2)
    got = edited(tiny_run, tmp_path / "a.png", **sweep)
    said = capsys.readouterr().err
    assert "15/15" in said and ("step/s" in said or "s/step" in said)                   # of three rows
    monkeypatch.setattr(progress, "is_watched", lambda: False)
    assert edited(tiny_run, tmp_path / "b.png", **sweep) == got and not capsys.readouterr().err


@pytest.mark.slow
def test_the_bar_of_an_edit_ends_full(tiny_run, tmp_path, monkeypatch):
    """With the way up of an inversion, and with every edit of a session."""
    bars = []

    @contextmanager
    def counting(total):
        bars.append((total, Count()))
        yield bars[-1][1]

    digit, session = str(saved(tiny_run, tmp_path, num=1)), str(tmp_path / "s.json")
    inpaint, replay = dict(op="inpaint", images=digit, session=session), dict(op="replay", session=session)
    alone = edit.bar_of_steps
    monkeypatch.setattr(edit, "bar_of_steps", counting)
    for options in (dict(op="invert", images=digit, label=3), inpaint | dict(rect=("0,0,4,8",), steps="7"),
                    inpaint | dict(rect=("2,2,6,6",)), replay):
        got = edited(tiny_run, tmp_path / "a.png", **options)
    assert [(total, meter.done) for total, meter in bars] == [(10, 10), (7, 7), (12, 12), (12, 12)]
    monkeypatch.setattr(edit, "bar_of_steps", alone)
    assert edited(tiny_run, tmp_path / "b.png", **replay) == got


def test_an_out_that_is_an_animation_shows_how_the_pictures_arise(tiny_run, tmp_path, capsys):
    pytest.importorskip("imageio")
    ask("sample", tiny_run, out=str(tmp_path / "x.gif"), num=4, label=3)
    assert list(files(tmp_path)) == ["x.gif"] and f"4 samples: {tmp_path / 'x.gif'}" in capsys.readouterr().out
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames > 2
        gif.seek(gif.n_frames - 1)
        last = np.asarray(gif.convert("L"), int)
    grid = np.asarray(Image.open(str(saved(tiny_run, tmp_path))).convert("L"), int)
    factor = last.shape[0] // grid.shape[0]
    assert np.abs(last[::factor, ::factor][: grid.shape[0], : grid.shape[1]] - grid).mean() < 8     # 256 colours of a palette


def saved(folder, tmp_path, num=4):
    ask("sample", folder, out=str(tmp_path / "x.png"), num=num, label=3)
    return tmp_path / "x.png"


@pytest.mark.parametrize(("options", "says"), [
    (dict(num=9, batch=4), "an animation of 9 pictures is made as one batch: give a smaller --num, or --batch 9"),
    (dict(rounding="down"), "--rounding is for evaluators, which read no animation"),
])
def test_an_animation_that_cannot_be_is_refused_first(tiny_run, tmp_path, options, says):
    with pytest.raises(ConfigError, match=says):
        ask("sample", tiny_run, out=str(tmp_path / "x.gif"), **options)
    assert not files(tmp_path)


def test_an_mp4_says_what_it_needs_before_the_work(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion_jax.data.animation.find_spec", lambda name: None if name == "imageio_ffmpeg" else name)
    with pytest.raises(ConfigError, match="pip install imageio-ffmpeg"):
        ask("sample", tiny_run, out=str(tmp_path / "x.mp4"))
    assert not files(tmp_path)
