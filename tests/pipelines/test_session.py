"""The edits of a pipeline, and sessions of them that can be replayed."""
import json
import re

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.image import to_unit
from diffusion_jax.pipelines.edit import rectangles
from diffusion_jax.pipelines.pipeline import Pipeline, pipeline
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.request import Request
from diffusion_jax.pipelines.session import COUNT, replayed, story_in
from diffusion_jax.runs.folder import Run
from diffusion_jax.train.state import plain
from pipelines.toy_task import LABEL, TEXT, model_of, page

DIGITS = np.stack([Digits("test")[i]["image"] for i in (0, 150)])


@pytest.fixture(scope="module")
def pipe(folders):
    return pipeline(folders.label)


def bare(config):
    """A pipeline of a page with random weights that lies in no folder."""
    config = plain(config)
    return Pipeline(Run("runs/x", 0, "params", config, model_of(config)), Recipe(steps=4))


def far(a, b):
    return np.abs(a.astype(int) - b).max()


# Sweeps ---------------------------------------------------------------------------------------------------------------------


def test_sweeps_have_a_row_for_each_value_whose_ends_are_calls(pipe):
    switch = pipe.edit.switch(3, 7, values=[0, 2, 4], num=2, seed=1)
    assert switch.images.shape == (3, 2, 8, 8, 1) and switch.what == "switch over 0, 2, 4"
    mix = pipe.edit.mix(3, 7, values=[0.0, 0.5, 1.0], num=2, seed=1)
    three, seven = (pipe(label, num=2, seed=1).images for label in (3, 7))
    for sweep, ends in ((switch, (seven, three)), (mix, (three, seven))):
        assert far(sweep.images[0], ends[0]) <= 1 and far(sweep.images[2], ends[1]) <= 1
        assert far(sweep.images[1], ends[0]) > 0 and far(sweep.images[1], ends[1]) > 0


def test_scales_are_swept_over_what_a_call_makes(pipe):
    rows = pipe.edit.guidance(3, values=[1.0, 4.0], num=2, seed=1).images
    assert far(rows[0], pipe(3, num=2, seed=1).images) <= 1
    assert far(rows[1], pipe.using(guidance=4.0)(3, num=2, seed=1).images) <= 1
    guided = pipe.using(guidance=4.0)
    assert far(guided.edit.phi(3, values=[0.7], num=2, seed=1).images[0], guided.using(phi=0.7)(3, num=2, seed=1).images) <= 1
    with pytest.raises(ConfigError, match="op phi rescales guidance, which is 1 here"):
        pipe.edit.phi(3, values=[0.7])


def test_how_many_where_nobody_says(pipe):
    assert pipe.edit.mix(3, 7, values=[0.5]).images.shape[1] == COUNT
    assert pipe.edit.mix([1, 2], 7, values=[0.5], num=3).images.shape[1] == 6
    assert pipe.edit.strength(DIGITS, 3, values=[0.5]).images.shape[1] == 2
    assert pipe.edit.strength(DIGITS, 3, values=[0.5], num=5).images.shape[1] == 5


def test_strength_0_is_the_picture_and_1_a_new_one(pipe):
    rows = pipe.edit.strength(DIGITS, [3, 7], values=[0.0, 1.0], num=1, seed=2).images
    assert far(rows[0], DIGITS) <= 1
    assert far(rows[1], pipe([3, 7], num=1, seed=2).images) <= 1


def test_inversion_says_how_near_it_comes_back(pipe):
    rows = pipe.using(steps=9).edit.invert(DIGITS, 3)
    assert rows.images.shape == (3, 2, 8, 8, 1) and far(rows.images[0], DIGITS) <= 1
    mean, most = map(float, re.fullmatch(r"invert: back within ([\d.]+) of 255 on average, ([\d.]+) at most", rows.what).groups())
    apart = np.abs(rows.images[2].astype(float) - DIGITS)
    assert abs(apart.mean() - mean) < 0.6 and abs(apart.max() - most) < 1.1


def test_inversion_is_unguided_ddim_whatever_the_recipe_says(pipe):
    for recipe in (dict(sampler="heun"), dict(guidance=4.0, phi=0.5), dict(guidance=2.0, plus_plus=True)):
        np.testing.assert_array_equal(pipe.using(**recipe).edit.invert(DIGITS, 3).images, pipe.edit.invert(DIGITS, 3).images)


# In parts -------------------------------------------------------------------------------------------------------------------


def test_inpainting_leaves_what_lies_outside(pipe):
    before, after = pipe.edit.inpaint(DIGITS[0], [[0, 0, 4, 8], [6, 6, 8, 8]], 3, seed=4).images
    np.testing.assert_array_equal(before, DIGITS[:1])
    hole = np.zeros((8, 8), bool)
    hole[:4], hole[6:, 6:] = True, True
    np.testing.assert_array_equal(after[0][~hole], DIGITS[0][~hole])
    assert (after[0][hole] != DIGITS[0][hole]).mean() > 0.5
    same = pipe.edit.inpaint(DIGITS[0], [[0, 0, 4, 8]], 3, strength=0.0).images
    assert far(same[1], same[0]) <= 1


@pytest.mark.parametrize("strength", [-0.1, 1.5])
def test_a_strength_is_a_share(pipe, strength):
    with pytest.raises(ConfigError, match=f"strength is a share of noise, 0 ... 1: got {strength}"):
        pipe.edit.inpaint(DIGITS[0], [[0, 0, 4, 8]], 3, strength=strength)


# What is refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("edit", "says"), [
    (lambda e: e.switch(3, 7, values=[]), "op switch needs values"),
    (lambda e: e.switch(3, 7, values=[1.5]), "values of switch are numbers of steps"),
    (lambda e: e.mix(3, 7, values=[2.0]), "values of mix lie in 0 ... 1"),
    (lambda e: e.mix(3, 17, values=[0.5]), "label 17 is outside 0 ... 9"),
    (lambda e: e.mix(3, [1, 2, 3], values=[0.5], num=4), "4 pictures do not divide among 3 second conditions"),
    (lambda e: e.guidance("a three"), "this model reads no text"),
    (lambda e: e.strength(np.zeros((1, 4, 4, 1), np.uint8)), r"--images has pictures of \(4, 4, 1\), this model makes"),
    (lambda e: e.strength("nowhere.png"), "there is no nowhere.png"),
    (lambda e: e.inpaint(DIGITS[0], [[0, 0, 9, 9]]), "is not top,left,bottom,right inside 8x8"),
    (lambda e: e.variations(DIGITS), "op variations is for a decoder of unCLIP"),
    (lambda e: e.components(DIGITS), "op components is for a decoder of unCLIP"),
], ids=["no values", "half a step", "share", "label", "divide", "text", "shape", "file", "rect", "variations", "components"])
def test_edits_that_make_no_sense_are_one_line(pipe, edit, says):
    with pytest.raises(ConfigError, match=says) as error:
        edit(pipe.edit)
    assert "\n" not in str(error.value)


def test_a_model_without_a_condition_has_none_to_switch():
    nothing = bare(page({"name": "diffusion_jax.models.cond:Nothing"}))
    with pytest.raises(ConfigError, match="op switch goes from one condition to another: this model has none"):
        nothing.edit.switch(None, 1, values=[0])


def test_what_a_condition_is_mixed_with_is_of_its_kind():
    texts = bare(page(TEXT)).edit.mix("a three", "a one", values=[0.0, 1.0], num=2)
    assert texts.images.shape == (2, 2, 8, 8, 1) and far(texts.images[0], texts.images[1]) > 0


# Files ----------------------------------------------------------------------------------------------------------------------


def test_rows_are_saved_as_a_grid_and_frames(pipe, tmp_path):
    rows = pipe.edit.mix(3, 7, values=[0.0, 0.5, 1.0], num=2)
    files = rows.save(tmp_path / "x.png")
    assert files[:2] == [tmp_path / "x.png", tmp_path / "x.gif"] and all(file.is_file() for file in files)
    with Image.open(files[0]) as grid, Image.open(files[1]) as frames:
        np.testing.assert_array_equal(np.asarray(grid)[10:18, :8], rows.images[1, 0, ..., 0])
        assert frames.n_frames == 3
    single = pipe.edit.mix(3, 7, values=[0.5], num=2)
    assert single.save(tmp_path / "y") == [tmp_path / "y.png"]


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
    ('{"image": "x.png", "edits": [{"rect": [["a", 0, 1, 1]]}]}', "is no session"),
])
def test_what_is_no_session_is_refused(text, says, tmp_path):
    file = tmp_path / "s.json"
    if text is not None:
        file.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=says) as error:
        story_in(file)
    assert "\n" not in str(error.value)


def test_a_session_is_read_as_it_was_written(tmp_path):
    story = {"image": "x.png", "edits": [{"rect": [[0, 0, 4, 8]], "label": 3, "seed": 2, "steps": 5}, {"rect": []}]}
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
    (dict(strength=3), "strength is a share of noise"),
    (dict(strength="a"), "strength is a share of noise"),
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
    with pytest.raises(ConfigError, match=says) as error:
        replayed(pipe, {"image": str(file), "edits": [{"rect": [[0, 0, 4, 4]], **edit}]})
    assert "\n" not in str(error.value)


def test_labels_of_a_model_that_has_them_alone():
    assert bare(page(LABEL)).edit.mix(0, 1, values=[0.5], num=1).images.shape == (1, 1, 8, 8, 1)
