"""Mode `edit` on a run of four steps: every op writes what it promises, and a session is replayed bit for bit."""
import json
import shutil

import numpy as np
import pytest
from pages import ask, files, page, refused
from PIL import Image
from stubs import random_params

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
    said = capsys.readouterr().out
    assert "back within" in said and "back, beside the pictures: PSNR" in said


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
    (dict(), "mode edit needs --op: invert, strength.*for example --op switch --label 3 --to_label 7 --values 0,10,20"),
    (dict(op=""), "mode edit needs --op"),
    (dict(op="guidance", values=("1",), guidance=3.0), "op guidance takes its own from --values: leave --guidance out"),
    (dict(op="phi", values=("1",), guidance=3.0, phi=0.5), "op phi takes its own from --values: leave --phi out"),
    (dict(op="invert", images="x.png", values=("1",)), "op invert takes no --values"),
    (dict(op="mix", to_label=3, values=("0.5",), strength=0.5), "op mix takes no --strength"),
    (dict(op="mix", to_label=3, values=("0.5",), rect=("0,0,1,1",)), "op mix takes no --rect"),
    (dict(op="mix", to_label=3, values=("0.5",), upsampler=("up",)), "op mix takes no --upsampler"),
    (dict(op="mix", to_label=3, values=("0.5",), truncate=True), "truncate .* cuts prompts"),
    (dict(op="mix", to_label=3, values=("0.5",), channels=1, guidance=3.0), "are all that the model has"),
    (dict(op="inpaint", images="x.png", rect=("0,0,1,1",), to_label=3), "op inpaint takes no --to_label"),
    (dict(op="inpaint", images="x.png", rect=("0,0,1,1",), num=3), "op inpaint takes no --num"),
    (dict(op="components", images="x.png", values=("2",), num=3), "op components takes no --num"),
    (dict(op="mix", to_label=3, values=("0.5",), seed="4294967296"), "seed is 0 ... 4294967295"),
    (dict(op="mix", to_label=3, values=("0.5",), seed="1e3"), "seed is a whole number, got '1e3'"),
    (dict(op="mix", to_label=3, values=("0.5",), num="1000000000000"), "num is 1 ... 4096"),
    (dict(op="mix", to_label="--3", values=("0.5",)), "unknown class '--3'"),
    (dict(op="mix", to_label=3, values=("0.5",), out="x.npz"), "end it in .png, or give a name"),
    (dict(op="switch", to_label=3, values=("0,99",)), "steps under the first condition, 0 ... 5: got 99"),
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


@pytest.mark.parametrize(("op", "text", "says"), [
    ("guidance", "1,a", "--values 1,a: give numbers, separated by commas"),
    ("guidance", "1,,2", "give numbers, separated by commas"),
    ("guidance", ",,,", "give numbers"),
    ("guidance", "nan", "not finite"),
    ("guidance", "1e400", "not finite"),
    ("guidance", "1_000", "give numbers"),
    ("guidance", "\u0663", "give numbers"),
    ("guidance", "0x10", "give numbers"),
    ("switch", "-3", "a value of switch (--values) is 0 or more, got -3"),
    ("switch", "1.7", "a value of switch (--values) is a whole number, got 1.7"),
    ("strength", "2", "a value of strength (--values) is 0 ... 1, got 2"),
    ("mix", "-0.1", "a value of mix (--values) is 0 ... 1"),
    ("variations", "1.5", "a value of variations (--values) is 0 ... 1"),
    ("components", "0", "a value of components (--values) is 1 or more"),
])
def test_values_are_numbers_of_their_op(cli, op, text, says):
    images = ("--images", "x.png") if op in ("strength", "variations", "components") else ()
    second = ("--to_label", "3") if op in ("switch", "mix") else ()
    assert refused(cli("--workdir", "no run", "--mode", "edit", "--op", op, *images, *second, "--values", text), says)


@pytest.mark.parametrize("rect", ["0,0,4", "0,0,4,8,9", "0,0,1.5,4", "0,0,\u0663,4", "-1,0,4,4", "0,0,1_0,4", "0,0,nan,4", ",,,"])
def test_rectangles_are_four_whole_numbers(cli, rect):
    done = cli("--workdir", "no run", "--mode", "edit", "--op", "inpaint", "--images", "x.png", "--rect", rect)
    assert refused(done, f"--rect {rect}: give top,left,bottom,right in pixels")


@pytest.mark.parametrize("rect", ["4,4,4,8", "4,4,2,8", "0,0,9,8", "0,8,4,8", "100,100,200,200"])
def test_rectangles_lie_in_the_picture(tiny_run, digit, rect, tmp_path):
    with pytest.raises(ConfigError, match="is not top,left,bottom,right inside 8x8 pixels"):
        run(tiny_run, "inpaint", tmp_path / "a.png", images=digit, rect=(rect,))


# Files ----------------------------------------------------------------------------------------------------------------------


def test_results_of_before_stay(tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    for _ in range(2):
        ask("edit", copy, op="mix", label=1, to_label=2, values=("0,1",), **QUICK)
    ask("edit", copy, op="mix", label=1, to_label=2, values=("1",), **QUICK)
    names = {path.name for path in copy.glob("edit*.png")}
    assert names == {"edit_mix_0,1.png", "edit_mix_0,1-2.png", "edit_mix_1.png"}


def test_a_dot_in_a_name_is_no_suffix(tiny_run, tmp_path):
    run(tiny_run, "mix", tmp_path / "v1.5", label=1, to_label=2, values=("0,1",), **QUICK)
    assert {path.suffix for path in tmp_path.glob("v1.5.*")} >= {".png", ".gif"} and not (tmp_path / "v1.png").exists()


@pytest.mark.parametrize("out", ["x.png", "x", "file/x.png", "folder/x"])
def test_where_it_goes_is_tried_before_the_work(out, tmp_path, monkeypatch, tiny_run):
    monkeypatch.setattr(edit, "opened", None)
    (tmp_path / "x.png").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "x.gif").mkdir(parents=True)
    with pytest.raises(ConfigError, match="choose another"):
        run(tiny_run, "mix", tmp_path / out, to_label=2, values=("0,1",))


def test_a_session_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, tiny_run, digit):
    monkeypatch.setattr(edit, "opened", None)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="s.json cannot be written"):
        run(tiny_run, "inpaint", tmp_path / "x", images=digit, rect=("0,0,4,4",), session=str(tmp_path / "file" / "s.json"))


def test_a_workdir_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(ConfigError, match="there is no folder"):
        ask("edit", tmp_path / "run", op="mix", to_label=2, values=("0,1",))
    assert not list(tmp_path.iterdir())


def test_an_interrupted_edit_leaves_its_session_whole(tiny_run, digit, tmp_path, monkeypatch):
    file = tmp_path / "s.json"
    run(tiny_run, "inpaint", tmp_path / "a", images=digit, rect=("0,0,4,8",), steps=2, session=str(file))
    before = files(tmp_path)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(edit.json, "dumps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_run, "inpaint", tmp_path / "a", images=digit, rect=("2,2,4,8",), steps=2, session=str(file))
    assert files(tmp_path) == before


@pytest.mark.parametrize(("edit", "says"), [
    ('{"rect": [[0, 0, 4, 4]], "label": {"name": "diffusion_jax.files:whole", "path": "VICTIM"}}', "edit 1: label"),
    ('{"rect": [[0, 0, 4, 4]], "sampler": {"name": "diffusion_jax.files:whole", "path": "VICTIM"}}', "edit 1: sampler"),
    ('{"rect": [[0, 0, 4, 4]], "cads": "name=diffusion_jax.files:whole,path=VICTIM"}', "edit 1: unknown option of CADS"),
    ('{"rect": [[0, 0, 4, 4]], "name": "diffusion_jax.files:whole"}', "edit 1: unknown key of an edit 'name'"),
    ('{"rect": [[0, 0, 4, 4]], "times": "diffusion_jax.files:whole,path=VICTIM"}', "edit 1: unknown times"),
    ('{"rect": [[0, 0, 4, 4]], "session": "VICTIM"}', "edit 1: unknown key of an edit 'session'"),
    ('{"rect": [[0, 0, 4, 4]], "weights": "../../VICTIM"}', "edit 1: unknown key of an edit 'weights'"),
    ('{"rect": [[0, 0, 4, 4]], "out": "VICTIM"}', "edit 1: unknown key of an edit 'out'"),
])
def test_a_session_from_elsewhere_names_nothing_that_is_built(cli, tiny_run, digit, tmp_path, edit, says):
    victim = tmp_path / "victim"
    victim.write_text("whole")
    file = tmp_path / "s.json"
    file.write_text('{"image": "' + digit + '", "edits": [' + edit.replace("VICTIM", str(victim)) + "]}")
    before = files(tmp_path)
    for op in (("replay",), ("inpaint", "--rect", "0,0,4,4")):
        done = cli("--workdir", tiny_run, "--mode", "edit", "--op", *op, "--session", file, "--out", tmp_path / "a.png")
        assert refused(done, f"--session {file}: {says}"), done.err
    assert files(tmp_path) == before


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


@pytest.mark.slow
def test_a_model_without_a_condition_has_none_to_switch(tmp_path):
    config = plain(page("digits_adm"))
    task = task_of(config)
    assert not task.num_classes
    save_start(tmp_path / "run", config, random_params(task, {"image": np.zeros((1, *task.shape))}))
    with pytest.raises(ConfigError, match="this model has none"):
        ask("edit", tmp_path / "run", op="switch", to_label=1, values=(0,))
