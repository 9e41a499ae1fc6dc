"""Mode `edit` on a run of four steps: every op writes what it promises, and a session is replayed bit for bit."""
import json

import jax
import numpy as np
import pytest
from pages import ask, page
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.pictures import save_png
from diffusion_jax.modes import edit
from diffusion_jax.modes.options import built
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.pipelines.session import replayed
from diffusion_jax.runs.folder import save_start
from diffusion_jax.train.state import plain, task_of

QUICK = {"steps": 3, "num": 2}


@pytest.fixture(scope="module")
def digit(tmp_path_factory):
    path = tmp_path_factory.mktemp("digit") / "digit.png"
    save_png(path, Digits("test")[0]["image"])
    return str(path)


def run(folder, op, out, **options):
    ask("edit", folder, **{"op": op, "out": str(out)} | options)


@pytest.mark.parametrize("op, options", [
    ("switch", dict(label=1, to_label=2, values=(0, 3))),
    pytest.param("mix", dict(label=1, to_label=2, values=(0, 0.5, 1)), marks=pytest.mark.slow),
    pytest.param("guidance", dict(label=1, values=(-10, 10)), marks=pytest.mark.slow),
    pytest.param("phi", dict(label=1, guidance=3.0, values=(-10, 10)), marks=pytest.mark.slow),
    pytest.param("strength", dict(label=1, values=(0, 1)), marks=pytest.mark.slow),
])
def test_a_sweep_is_a_grid_and_an_animation(op, options, tiny_run, digit, tmp_path, capsys):
    run(tiny_run, op, tmp_path / "x.png", **QUICK, **options, **({"images": digit} if op == "strength" else {}))
    rows = len(options["values"])
    with Image.open(tmp_path / "x.png") as grid:
        assert grid.size == (2 * 10 - 2, rows * 10 - 2)
    with Image.open(tmp_path / "x.gif") as film:
        assert 1 <= film.n_frames <= rows                                   # frames that are equal become one
    assert f"{op} over" in capsys.readouterr().out


def test_inversion_says_how_well(tiny_run, digit, tmp_path, capsys):
    run(tiny_run, "invert", tmp_path / "x.png", images=digit, label=1, steps=3)
    assert "back within" in capsys.readouterr().out


def test_a_session_is_replayed(tiny_run, digit, tmp_path):
    session = tmp_path / "s.json"
    for label, rect in ((3, "0,0,4,8"), (5, "2,2,6,6")):
        run(tiny_run, "inpaint", tmp_path / "a.png", images=digit, rect=(rect,), label=label, steps=2, session=str(session))
    story = json.loads(session.read_text())
    assert [one["label"] for one in story["edits"]] == [3, 5] and story["edits"][0]["rect"] == [[0, 0, 4, 8]]
    run(tiny_run, "replay", tmp_path / "b.png", session=str(session))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    states = replayed(pipeline(tiny_run), story)
    assert states.shape == (3, 8, 8, 1)
    np.testing.assert_array_equal(states[1][4:], states[0][4:])
    assert (states[1][:4] != states[0][:4]).any()


@pytest.mark.parametrize("options, message", [
    (dict(op="swich"), "did you mean 'switch'"),
    (dict(op="strength", values=(0,)), "needs --images"),
    (dict(op="guidance"), "needs --values"),
    (dict(op="mix", values=(0,)), "needs --to_label or --to_prompt"),
    (dict(), "mode edit needs --op: invert, strength"),
    (dict(op="replay"), "needs --session"),
    (dict(op="inpaint"), "needs --images"),
    (dict(op="guidance", values=(1,), prompt=("a three",)), "reads no text"),
    (dict(op="guidance", values=(1,), images="x.png"), "op guidance takes no --images"),
    (dict(op="invert", images="x.png", to_label=3), "op invert takes no --to_label"),
    (dict(op="interpolate", images="x.png", values=(1,), num=3), "op interpolate takes no --num"),
    (dict(op="invert", images="x.png", sampler="ancestral"), "leave --sampler out"),
    (dict(op="variations", images="x.png", values=(1,), sampler="heun"), "leave --sampler out"),
    (dict(op="phi", values=(1,), temperature=0.9), "--temperature belongs to modes evaluate, sample"),
    (dict(op="replay", session="missing.json"), "there is no missing.json"),
])
def test_what_is_refused(options, message, tiny_run):
    with pytest.raises(ConfigError, match=message):
        ask("edit", tiny_run, **options)


@pytest.mark.parametrize(("said", "options", "message"), [
    (None, dict(rect=("a,b,c,d",)), "--rect a,b,c,d: give top"),
    (None, dict(rect=("0,0,9,9",)), "is not top,left,bottom,right inside"),
    (None, dict(rect=("0,0,4,4",), sampler="ddmi"), "did you mean 'ddim'"),
    (None, dict(rect=("0,0,4,4",), images="other.png"), "leave --images out"),
    ("{", dict(rect=("0,0,4,4",)), "does not read as JSON"), ("{}", dict(rect=("0,0,4,4",)), "is no session"),
    ('{"image": "x.png", "edits": [{"rect": [1, 2]}]}', dict(rect=("0,0,4,4",)), "is no session"),
])
def test_an_edit_that_is_refused_leaves_its_session(said, options, message, tiny_run, digit, tmp_path):
    file = tmp_path / "s.json"
    file.write_text(said or json.dumps({"image": digit, "edits": []}))
    before = file.read_text()
    with pytest.raises(ConfigError, match=message):
        run(tiny_run, "inpaint", tmp_path / "a.png", steps=2, session=str(file), **options)
    assert file.read_text() == before


def test_values_are_numbers(cli, tiny_run):
    done = cli("--workdir", tiny_run, "--mode", "edit", "--op", "guidance", "--values", "1,a")
    assert done.code == 2 and "--values 1,a: give numbers, separated by commas" in done.err


def test_a_replay_takes_nothing_new(tiny_run, digit, tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"image": digit, "edits": []}))
    for options in (dict(label=3), dict(steps="2"), dict(seed=1)):
        with pytest.raises(ConfigError, match=f"--{next(iter(options))} is for op inpaint"):
            run(tiny_run, "replay", tmp_path / "a.png", session=str(tmp_path / "s.json"), **options)


def test_inversion_comes_back_by_ddim_whatever_the_page_says(tiny_run):
    for op in ("invert", "variations"):
        options = built(edit.Options, dict(op=op, images="x.png") | ({} if op == "invert" else dict(values=(1,))))
        pipe = edit.pipe_of(options, str(tiny_run))
        assert pipe.recipe.sampler == "ddim"


def test_a_model_without_a_condition_has_none_to_switch(tmp_path):
    config = plain(page("digits_adm"))
    task = task_of(config)
    assert not task.num_classes
    save_start(tmp_path / "run", config, task.init(jax.random.key(0), {"image": np.zeros((1, *task.shape))}))
    with pytest.raises(ConfigError, match="this model has none"):
        ask("edit", tmp_path / "run", op="switch", to_label=1, values=(0,))
