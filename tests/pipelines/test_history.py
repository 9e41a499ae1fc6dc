"""A picture that is changed again and again; mode edit replays what was saved."""
import json

import numpy as np
import pytest
from pages import ask

from diffusion_jax.build import ConfigError
from diffusion_jax.data.image import read
from diffusion_jax.pipelines.history import History
from diffusion_jax.pipelines.pipeline import pipeline

EDITS = ({"rect": [[2, 3, 4, 8]], "label": "5", "seed": 3}, {"rect": [[4, 3, 6, 8]], "guidance": 2.0, "strength": 0.5})


def test_edits_are_made_undone_saved_and_replayed(folders, tmp_path, monkeypatch):
    pipe = pipeline(folders.label)
    start = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    history = History((start,))
    for edit in EDITS:
        history = history.edited(pipe, edit)
    before, after = history.states[:2]
    inside = np.zeros((8, 8), bool)
    inside[2:4, 3:8] = True
    assert np.array_equal(before[~inside], after[~inside]) and not np.array_equal(before[inside], after[inside])
    assert history.undone().states == history.states[:2] and history.undone().edits == EDITS[:1]
    assert [file.name for file in history.save(tmp_path)] == ["start.png", "session.json"]
    assert json.loads((tmp_path / "session.json").read_text())["edits"] == list(EDITS)
    monkeypatch.chdir(tmp_path)
    ask("edit", folders.label, op="replay", session="session.json", out="again.png")
    assert np.array_equal(read(tmp_path / "again.png")[-8:], history.now)


def test_without_a_picture_there_is_nothing_to_do(folders, tmp_path):
    assert History().undone() == History()
    pipe = pipeline(folders.label)
    for do in (lambda: History().now, lambda: History().save(tmp_path), lambda: History().edited(pipe, EDITS[0])):
        with pytest.raises(ConfigError, match="there is no picture to edit"):
            do()
