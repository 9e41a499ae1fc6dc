"""What a page makes is what the library makes of the same request; a session is replayed by mode edit."""
import json
import os

import numpy as np
import pytest
from pages import ask

from diffusion_jax.build import ConfigError
from diffusion_jax.data.image import read
from diffusion_jax.studio.desk import filled
from diffusion_jax.studio.pictures import Session, captions, form_of, make, painted

pytestmark = pytest.mark.slow  # programs are compiled


@pytest.fixture(scope="module")
def made(desk):
    """(form, what was told on the way, samples) of two threes and two fours."""
    form = filled("label", desk.pipe("label"), classes=["3", "4"], num=2, seed=7)
    told = []
    return form, told, make(desk, form, told.append)


def test_pictures_are_those_of_the_library(desk, made):
    form, told, samples = made
    assert np.array_equal(samples.images, desk.pipe("label")(["3", "4"], num=2, seed=7).images)
    assert told[-1].done == told[-1].total == form.steps and np.array_equal(told[-1].images, samples.images)
    lines = captions(samples)
    assert [line.split(" · ")[0] for line in lines] == ["3", "3", "4", "4"] and "seed 7, picture 1" in lines[1]


def test_a_picture_fills_the_form_that_made_it(desk, made, tmp_path):
    form, _, samples = made
    samples.save(f"{tmp_path}/out/")
    for file in sorted((tmp_path / "out").glob("*.png")):
        again = form_of(desk, file.read_bytes())
        assert again == form._replace(classes=again.classes) and list(again.classes) == ["3", "4"]


def test_a_picture_that_says_nothing_is_refused_without_a_path(desk, tmp_path):
    from diffusion_jax.data.pictures import save_png

    save_png(tmp_path / "x.png", np.zeros((8, 8, 1), np.uint8))
    with pytest.raises(ConfigError, match="this picture does not say how it was made") as error:
        form_of(desk, (tmp_path / "x.png").read_bytes())
    assert "/" not in str(error.value).split(":")[0]
    for data in (None, b"", b"PNG"):
        with pytest.raises(ConfigError):
            form_of(desk, data)


def test_a_session_is_made_undone_saved_and_replayed(desk, folders, made, tmp_path, monkeypatch):
    form, _, samples = made
    layer = np.zeros((80, 80, 4), np.uint8)
    layer[20:40, 30:80] = 255  # rows 2 and 3, columns 3 to 7
    session = Session((samples.images[0],))
    session = painted(desk, form._replace(classes=["5"], seed=3), session, [layer], 1, lambda news: None)
    session = painted(desk, form._replace(classes=[], guidance=2.0), session, [layer[::-1]], 0.5, lambda news: None)
    before, after = session.states[:2]
    inside = np.zeros((8, 8), bool)
    inside[2:4, 3:8] = True
    assert np.array_equal(before[~inside], after[~inside]) and not np.array_equal(before[inside], after[inside])
    assert session.undone().states == session.states[:2] and Session().undone() == Session()
    assert [os.path.basename(file) for file in session.save(str(tmp_path))] == ["start.png", "session.json"]
    assert "guidance" not in json.loads((tmp_path / "session.json").read_text())["edits"][0]
    monkeypatch.chdir(tmp_path)
    ask("edit", folders.label, op="replay", session="session.json", out="again.png")
    sheet = read(tmp_path / "again.png")
    assert np.array_equal(sheet[-8:], session.now)


@pytest.mark.parametrize("shape", [(4, 4, 1), (8, 8, 3)])
def test_a_picture_of_another_run_is_refused(desk, made, shape):
    with pytest.raises(ConfigError, match="does not edit such a picture"):
        painted(desk, made[0], Session((np.zeros(shape, np.uint8),)), [], 1, lambda news: None)
    with pytest.raises(ConfigError, match="load a picture"):
        painted(desk, made[0], Session(), [], 1, lambda news: None)
