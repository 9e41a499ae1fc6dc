"""The edits of a pipeline."""
import re
from dataclasses import replace

import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.data.digits import Digits
from diffusion_jax.pipelines.edits import COUNT, values_of
from diffusion_jax.pipelines.pipeline import Pipeline, pipeline
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.request import Request
from diffusion_jax.runs.folder import Run
from diffusion_jax.train.state import plain
from pipelines.test_progress import Count
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
    edited = pipe.edit.strength(DIGITS, [3, 7], values=[0.0, 1.0], num=1, seed=2)
    rows, near = edited.images, edited.likeness()
    assert near["strength 0.0"]["PSNR (dB)"] > 45 > 30 > near["strength 1.0"]["PSNR (dB)"]
    assert far(rows[0], DIGITS) <= 1
    assert far(rows[1], pipe([3, 7], num=1, seed=2).images) <= 1


def test_inversion_says_how_near_it_comes_back(pipe):
    rows = pipe.using(steps=9).edit.invert(DIGITS, 3)
    assert rows.images.shape == (3, 2, 8, 8, 1) and far(rows.images[0], DIGITS) <= 1
    mean, most = map(float, re.fullmatch(r"invert: back within ([\d.]+) of 255 on average, ([\d.]+) at most", rows.what).groups())
    apart = np.abs(rows.images[2].astype(float) - DIGITS)
    assert abs(apart.mean() - mean) < 0.6 and abs(apart.max() - most) < 1.1
    decibels = np.mean(10 * np.log10(255**2 / np.mean(apart**2, axis=(1, 2, 3))))
    assert rows.likeness() == {"back": {"PSNR (dB)": pytest.approx(decibels)}}        # nothing else sees 8 pixels


def test_inversion_is_unguided_ddim_whatever_the_recipe_says(pipe):
    for recipe in (dict(sampler="heun"), dict(guidance=4.0, phi=0.5), dict(guidance=2.0, plus_plus=True)):
        np.testing.assert_array_equal(pipe.using(**recipe).edit.invert(DIGITS, 3).images, pipe.edit.invert(DIGITS, 3).images)


@pytest.mark.slow
@pytest.mark.parametrize(("edit", "steps"), [
    (lambda e: e.invert(DIGITS, 3), 4 + 4),
    (lambda e: e.guidance(3, values=[1.0, 4.0, 7.0], num=2), 3 * 4),
    (lambda e: e.inpaint(DIGITS[0], [[0, 0, 4, 8]], 3, strength=0.8), 4),
], ids=["invert", "guidance", "inpaint"])
def test_a_meter_counts_the_steps_and_changes_nothing(pipe, edit, steps):
    meter = Count()
    np.testing.assert_array_equal(edit(replace(pipe, meter=meter).edit).images, edit(pipe.edit).images)
    assert meter.done == steps


# In parts -------------------------------------------------------------------------------------------------------------------


def test_inpainting_leaves_what_lies_outside(pipe):
    edited = pipe.edit.inpaint(DIGITS[0], [[0, 0, 4, 8], [6, 6, 8, 8]], 3, seed=4)
    before, after = edited.images
    assert edited.likeness()["after"]["most outside"] == 0 and edited.likeness()["after"]["PSNR (dB)"] < 60
    np.testing.assert_array_equal(before, DIGITS[:1])
    hole = np.zeros((8, 8), bool)
    hole[:4], hole[6:, 6:] = True, True
    np.testing.assert_array_equal(after[0][~hole], DIGITS[0][~hole])
    assert (after[0][hole] != DIGITS[0][hole]).mean() > 0.5
    same = pipe.edit.inpaint(DIGITS[0], [[0, 0, 4, 8]], 3, strength=0.0).images
    assert far(same[1], same[0]) <= 1


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan"), "0.5", None, True])
def test_a_strength_is_a_share(pipe, strength):
    with pytest.raises(ConfigError, match=f"strength is a share of noise, 0 ... 1: got {strength!r}"):
        pipe.edit.inpaint(DIGITS[0], [[0, 0, 4, 8]], 3, strength=strength)


@pytest.mark.parametrize(("op", "values", "says"), [
    ("mix", [float("nan")], "a value of mix .--values. is nan, which is not finite"),
    ("phi", [float("inf")], "a value of phi .--values. is inf"),
    ("guidance", ["3"], "a value of guidance .--values. is a number, got '3'"),
    ("guidance", "1,2", "op guidance needs values"),
    ("guidance", 3, "op guidance needs values"),
    ("guidance", [None], "a value of guidance .--values. is a number, got None"),
    ("guidance", [True], "is a number, got True"),
    ("strength", [-1], "a value of strength .--values. is 0 ... 1, got -1"),
    ("switch", [-3], "a value of switch .--values. is 0 or more, got -3"),
    ("components", [0], "a value of components .--values. is 1 or more, got 0"),
    ("components", [1.7], "is a whole number, got 1.7"),
    ("variations", [1.5], "is 0 ... 1, got 1.5"),
    ("interpolate", [-0.1], "is 0 ... 1, got -0.1"),
    ("text_diff", [2], "is 0 ... 1, got 2"),
])
def test_values_have_ranges(op, values, says):
    with pytest.raises(ConfigError, match=says) as error:
        values_of(op, values)
    assert "\n" not in str(error.value)


def test_values_that_are_whole_are_ints():
    assert values_of("switch", [0.0, np.int64(3)]) == [0, 3] and all(type(one) is int for one in values_of("switch", [0.0, 3]))
    assert values_of("phi", range(-2, 1)) == [-2, -1, 0]


# What is refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("edit", "says"), [
    (lambda e: e.switch(3, 7, values=[]), "op switch needs values"),
    (lambda e: e.switch(3, 7, values=[1.5]), "a value of switch .--values. is a whole number, got 1.5"),
    (lambda e: e.mix(3, 7, values=[2.0]), "a value of mix .--values. is 0 ... 1, got 2.0"),
    (lambda e: e.mix(3, 17, values=[0.5]), "label 17 is outside 0 ... 9"),
    (lambda e: e.mix(3, [1, 2, 3], values=[0.5], num=4), "4 pictures do not divide among 3 second conditions"),
    (lambda e: e.switch(3, 3, values=[0, 2]), "op switch goes from one condition to another: these are the same, give others"),
    (lambda e: e.mix([3, 4], [3, 4], values=[0.5]), "op mix goes from one condition to another: these are the same"),
    (lambda e: e.guidance("a three"), "this model reads no text"),
    (lambda e: e.strength(np.zeros((1, 4, 4, 1), np.uint8)), r"--images has pictures of \(4, 4, 1\), this model makes"),
    (lambda e: e.strength("nowhere.png"), "there is no nowhere.png"),
    (lambda e: e.inpaint(DIGITS[0], [[0, 0, 9, 9]]), "is not top,left,bottom,right inside 8x8"),
    (lambda e: e.variations(DIGITS), "op variations is for a decoder of unCLIP"),
    (lambda e: e.components(DIGITS), "op components is for a decoder of unCLIP"),
    (lambda e: e.switch(3, 7, values=[0, 5]), "steps under the first condition, 0 ... 4: got 5"),
    (lambda e: e.guidance(3, values=[1], num=0), "num is 1 ... 10000000, got 0"),
    (lambda e: e.guidance(3, values=[1], seed=2**32), "seed is 0 ... 4294967295"),
    (lambda e: e.guidance(Request(complete=DIGITS), values=[1]), "complete .--complete. is for a transformer over tokens"),
    (lambda e: e.inpaint(DIGITS, [[0, 0, 4, 4]]), "inpainting changes one picture, --images has 2: name one"),
    (lambda e: e.inpaint(DIGITS[0], [[0, 0, 4, 4]], [1, 2]), "inpainting makes one picture: give one prompt or label"),
    (lambda e: e.inpaint(5, [[0, 0, 4, 4]]), "images .--images. are pictures"),
    (lambda e: e.inpaint("/dev/null", [[0, 0, 4, 4]]), "/dev/null is no file"),
    (lambda e: e.invert(DIGITS, 3, seed=1), "op invert draws nothing: leave seed"),
    (lambda e: e.strength(DIGITS / 255, 3), "are pictures, uint8"),
], ids=["no values", "half a step", "share", "label", "divide", "same", "same two", "text", "shape", "file", "rect", "variations",
        "components", "steps", "num", "seed", "complete", "pictures", "labels", "images", "device", "no draw", "floats"])
def test_edits_that_make_no_sense_are_one_line(pipe, edit, says):
    with pytest.raises(ConfigError, match=says) as error:
        edit(pipe.edit)
    assert "\n" not in str(error.value)


def test_edits_start_from_noise_as_warm_as_a_call_does(pipe):
    """At temperature 0 from none: whatever the seed is, the same."""
    cold = pipe.using(temperature=0.0)
    for made in (lambda p, seed: p.edit.guidance(3, values=[1.0], num=2, seed=seed).images[0],
                 lambda p, seed: p.edit.strength(DIGITS, 3, values=[1.0], seed=seed).images[0],
                 lambda p, seed: p.edit.strength(DIGITS, 3, values=[0.5], seed=seed).images[0]):
        assert far(made(cold, 1), made(cold, 2)) == 0 < far(made(pipe, 1), made(pipe, 2))
    assert far(cold.edit.guidance(3, values=[1.0], num=2, seed=1).images[0], cold(3, num=2, seed=1).images) <= 1
    with pytest.raises(ConfigError, match="op invert starts from the pictures' own noise: leave temperature at 1"):
        cold.edit.invert(DIGITS, 3)


def test_edits_that_are_not_finite_are_no_black_pictures(pipe):
    model = pipe.run.model
    broken = jax.tree.map(lambda leaf: leaf * np.nan, model.params)
    broken = replace(pipe, run=pipe.run._replace(model=model.replace(params=broken)))
    for edit in (lambda e: e.mix(3, 7, values=[0.5], num=1), lambda e: e.inpaint(DIGITS[0], [[0, 0, 4, 4]], 3)):
        with pytest.raises(ConfigError, match="not finite"):
            edit(broken.edit)


@pytest.mark.parametrize(("helper", "says"), [
    (dict(classifier="classifier"), "open it without classifier .--classifier."),
    (dict(weak="other"), "open it without weak .--weak."),
    (dict(rerank="classifier", candidates=2), "open it without rerank .--rerank."),
    (dict(upsamplers=["upsampler"]), "upsamplers follow edits of unCLIP's embeddings alone"),
], ids=str)
def test_helpers_that_edits_would_not_look_at(folders, helper, says):
    names = vars(folders)
    helper = {key: [names[one] for one in value] if isinstance(value, list) else names.get(value, value)
              for key, value in helper.items()}
    with pytest.raises(ConfigError, match=says):
        pipeline(folders.label, **helper).edit.mix(3, 7)


def test_a_model_without_a_condition_has_none_to_switch():
    nothing = bare(page({"name": "diffusion_jax.models.cond:Nothing"}))
    with pytest.raises(ConfigError, match="op switch goes from one condition to another: this model has none"):
        nothing.edit.switch(None, 1, values=[0])


def test_what_a_condition_is_mixed_with_is_of_its_kind():
    texts = bare(page(TEXT)).edit.mix("a three", "a one", values=[0.0, 1.0], num=2)
    assert texts.images.shape == (2, 2, 8, 8, 1) and far(texts.images[0], texts.images[1]) > 0


def test_labels_of_a_model_that_has_them_alone():
    assert bare(page(LABEL)).edit.mix(0, 1, values=[0.5], num=1).images.shape == (1, 1, 8, 8, 1)
