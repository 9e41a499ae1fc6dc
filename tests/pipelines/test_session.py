"""Sessions of edits: files from anywhere are read or refused, and what they say is made again bit for bit."""
import json

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.image import to_unit
from diffusion_jax.pipelines.edit import rectangles
from diffusion_jax.pipelines.edits import Edits
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.pipelines.request import Request
from diffusion_jax.pipelines.session import edited, replayed, story_in

DIGITS = np.stack([Digits("test")[i]["image"] for i in (0, 150)])


@pytest.fixture(scope="module")
def pipe(folders):
    return pipeline(folders.label)


@pytest.mark.parametrize(("text", "says"), [
    (None, "does not read as JSON"),
    ("{", "does not read as JSON"),
    ("\xff", "does not read as JSON"),
    ("[]", "is no session: it needs image, a path, and edits, a list of mappings with rect"),
    ("{}", "is no session"),
    ('{"image": 3, "edits": []}', "is no session"),
    ('{"image": "x.png"}', "is no session"),
    ('{"image": "x.png", "edits": {}}', "is no session"),
    ('{"image": "x.png", "edits": [3]}', "is no session"),
    ('{"image": "x.png", "edits": [{}]}', "is no session"),
    ('{"image": "x.png", "edits": [{"rect": [1, 2]}]}', "is no session"),
    ('{"image": "x.png", "edits": [{"rect": [["a", 0, 1, 1]]}]}', "edit 1: it is no session's: rect is a list"),
    ('{"image": "x.png", "edits": [{"rect": [[true, 0, 1, 1]]}]}', "edit 1: .*rect is a list"),
    ('{"image": "x.png", "edits": [{"rect": [[0, 0, 1.5, 1]]}]}', "edit 1: .*rect is a list"),
    ('{"image": "x.png", "edits": [{"rect": [[0, 0, 1]]}]}', "edit 1: .*rect is a list"),
    ('{"image": "x.png", "edits": [{"rect": []}]}', "edit 1: .*rect is a list"),
    ('{"image": "x.png", "edits": [], "imge": 3}', "unknown key of a session 'imge': did you mean 'image'"),
    ('{"image": "", "edits": []}', "image is ''"),
    ('{"image": ["x.png"], "edits": []}', "image is"),
    ("[" * 100_000, "does not read as JSON"),
    ('{"image": "x.png", "edits": ' + "[" * 50_000 + "]" * 50_000 + "}", "does not read as JSON|is no session"),
    ('{"image": "x.png", "edits": [{"rect": [[0, 0, 1, 1]], "seed": ' + "9" * 5000 + "}]}", "does not read as JSON"),
    ('{"image": "x.png", "edits": [{"rect": [[0, 0, 1, 1]], "guidance": NaN}]}', "NaN is no number"),
    (" " * 2**21, "more than 1048576 bytes"),
] + [('{"image": "x.png", "edits": [{"rect": [[0, 0, 1, 1]]}, {"rect": [[0, 0, 1, 1]], ' + edit + "}]}", f"edit 2: {says}")
     for edit, says in (
    ('"labl": 3', "unknown key of an edit 'labl': did you mean 'label'"),
    ('"name": "diffusion_jax.files:whole"', "unknown key of an edit 'name'"),
    ('"low_res": "/etc/passwd"', "unknown key of an edit 'low_res'"),
    ('"label": {"name": "diffusion_jax.files:whole", "path": "x"}', "label .* is a class"),
    ('"prompt": {"name": "diffusion_jax.files:whole"}', "prompt .* is a text"),
    ('"prompt": 3', "prompt .* is a text"),
    ('"label": 1.5', "label .* is a class"),
    ('"label": [1, 2, [3]]', "label .* is a class"),
    ('"negative": ["a"]', "negative .* is a text"),
    ('"truncate": "yes"', "truncate .* is True or False"),
    ('"sampler": {"name": "diffusion_jax.files:whole", "path": "x"}', "sampler is a text"),
    ('"sampler": "ddim,name=diffusion_jax.files:whole"', "unknown option of ddim 'name'"),
    ('"times": ["uniform"]', "times is a text"),
    ('"steps": [5]', "steps is a whole number or a text"),
    ('"steps": 1e400', "steps is inf, which is not finite"),
    ('"steps": 0', "steps 0 makes no images"),
    ('"guidance": "3"', "guidance is a number, got '3'"),
    ('"guidance": null', "guidance is a number, got None"),
    ('"guidance": 1e400', "guidance is inf, which is not finite"),
    ('"plus_plus": 1', "plus_plus is True or False, got 1"),
    ('"temperature": -1', "temperature is 0 or more"),
    ('"strength": 2', "strength is 0 ... 1, got 2"),
    ('"strength": "0.5"', "strength is a number, got '0.5'"),
    ('"strength": true', "strength is a number, got True"),
    ('"seed": 4294967296', "seed is 0 ... 4294967295"),
    ('"seed": 9223372036854775808', "seed is 0 ... 4294967295"),
    ('"seed": -1', "seed is 0 ... 4294967295"),
    ('"seed": "7"', "seed is a whole number"),
    ('"seed": true', "seed is a whole number"),
    ('"seed": 1.0', "seed is a whole number"),
)], ids=lambda value: repr(value)[-60:])
def test_what_is_no_session_is_refused(text, says, tmp_path):
    file = tmp_path / "s.json"
    if text is not None:
        file.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=says) as error:
        story_in(file)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"--session {file}") and len(str(error.value)) < 2000


def test_a_session_is_read_as_it_was_written(tmp_path):
    story = {"image": "x.png", "edits": [{"rect": [[0, 0, 4, 8]], "label": 3, "seed": 2, "steps": 5},
                                         {"rect": [[0, 0, 1, 1]], "steps": "ddim50"}]}
    (tmp_path / "s.json").write_text(json.dumps(story))
    assert story_in(tmp_path / "s.json") == story


def test_a_replay_is_bit_for_bit_what_inpaint_made(pipe, tmp_path):
    file = tmp_path / "digit.png"
    Image.fromarray(DIGITS[0, ..., 0]).save(file)
    edits = [
        {"rect": [[0, 0, 4, 8]], "label": 3, "seed": 5},
        {"rect": [[2, 2, 6, 6], [7, 0, 8, 8]], "label": "5", "guidance": 3.0, "steps": 5, "strength": 0.7},
        {"rect": [[0, 0, 8, 8]]},
    ]
    states = replayed(pipe, {"image": str(file), "edits": edits})
    assert states.shape == (4, 8, 8, 1) and states.dtype == np.uint8
    np.testing.assert_array_equal(states[0], DIGITS[0])
    pipes = (pipe, pipe.using(guidance=3.0, steps=5), pipe)
    options = (dict(request=3, seed=5), dict(request=Request(label="5"), strength=0.7), dict())
    for i, (one, each, option) in enumerate(zip(edits, pipes, options, strict=True)):
        before, after = each.edit.inpaint(states[i], one["rect"], **option).images
        np.testing.assert_array_equal(before[0], states[i])
        np.testing.assert_array_equal(after[0], states[i + 1])
        hole = rectangles((8, 8, 1), one["rect"])[0, ..., 0] == 0
        np.testing.assert_array_equal(states[i + 1][~hole], states[i][~hole])
    np.testing.assert_array_equal(replayed(pipe, {"image": str(file), "edits": edits}), states)
    assert to_unit(states).min() >= -1


@pytest.mark.parametrize(("edit", "says"), [
    (dict(stepps=3), "did you mean 'steps'"),
    (dict(sampler="ddmi"), "did you mean 'ddim'"),
    (dict(strength=3), "strength is 0 ... 1, got 3"),
    (dict(strength="a"), "strength is a number, got 'a'"),
    (dict(label=[1, 2]), "inpainting makes one picture"),
    (dict(steps="ddim50"), "steps 'ddim50' is a respacing"),
    (dict(temperature=2.0, sampler="edm,s_min=1"), "s_min changes nothing"),
    (dict(seed="a"), "seed is a whole number"),
    (dict(label=12), "label 12 is outside"),
    (dict(label=1.5), "label .* is a class by its number or its name"),
    (dict(prompt="a three"), "reads no text"),
    (dict(rect=[[0, 0, 9, 9]]), "is not top,left,bottom,right inside"),
    (dict(phi=0.7), "is of guidance, which is 1 here"),
], ids=str)
def test_a_session_that_cannot_be_replayed_says_why(pipe, edit, says, tmp_path):
    file = tmp_path / "digit.png"
    Image.fromarray(DIGITS[0, ..., 0]).save(file)
    edits = [{"rect": [[0, 0, 4, 4]], **one} for one in ({}, edit)]
    with pytest.raises(ConfigError, match=f"edit 2: .*{says}") as error:
        replayed(pipe, {"image": str(file), "edits": edits})
    assert "\n" not in str(error.value)


def test_all_edits_are_checked_before_the_first_is_made(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(Edits, "inpainted", None)
    edits = [{"rect": [[0, 0, 4, 4]]}, {"rect": [[0, 0, 9, 9]]}]
    with pytest.raises(ConfigError, match="edit 2: .*is not top,left,bottom,right inside"):
        replayed(pipe, {"image": str(tmp_path / "not read.png"), "edits": edits})


@pytest.mark.parametrize("image", ["../../nowhere.png", "/dev/zero", "", 3, None, {"name": "diffusion_jax.files:whole"}], ids=str)
def test_a_picture_from_elsewhere_is_read_or_refused(pipe, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="there is no|is no file|is no session"):
        replayed(pipe, {"image": image, "edits": []})
    assert not list(tmp_path.iterdir())


def test_the_pictures_of_a_session_stand_beside_its_first():
    images = np.zeros((3, 8, 8, 1), np.uint8)
    images[1:, :4], images[2, 4, 0] = 255, 255
    rows = edited("replay", images, [{"rect": [[0, 0, 4, 8]]}, {"rect": [[4, 0, 5, 1], [6, 6, 8, 8]]}])
    assert rows.images.shape == (3, 1, 8, 8, 1) and rows.what == "replay: 3 pictures"
    assert rows.likeness() == {
        "after edit 1": {"PSNR (dB)": pytest.approx(10 * np.log10(2)), "most outside": 0},
        "after edit 2": {"PSNR (dB)": pytest.approx(10 * np.log10(64 / 33)), "most outside": 0},
    }
    outside = edited("replay", images, [{"rect": [[0, 0, 4, 8]]}] * 2).likeness()
    assert outside["after edit 2"]["most outside"] == pytest.approx(255)
