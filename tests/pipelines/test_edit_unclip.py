"""Edits through CLIP's embeddings: their ends are pictures that are made without them."""
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.image import to_unit
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.request import Request
from diffusion_jax.runs.folder import Run
from pipelines.test_progress import Count
from pipelines.toy_task import LOW_RES, model_of, page
from pipelines.unclip_task import EMBEDDER, FEATURES, embed, runs

DIGITS = np.stack([Digits("test")[i]["image"] for i in (0, 150, 250)])
THREE, ONE = "a handwritten three", "a handwritten one"


@pytest.fixture(scope="module")
def pipe():
    return Pipeline(runs().decoder, Recipe(steps=4))


@pytest.fixture(scope="module")
def again(pipe):
    """The pictures made again from their embeddings and their noise."""
    return pipe.edit.variations(DIGITS, values=[0.0]).images[0]


def far(a, b):
    return np.abs(a.astype(int) - b).max()


@pytest.mark.slow
def test_variations_draw_where_eta_is_not_0(pipe, again):
    rows = pipe.edit.variations(DIGITS, values=[0.0, 1.0], num=2, seed=3)
    assert rows.images.shape == (2, 6, 8, 8, 1) and rows.what == "variations over 0.0, 1.0"
    assert far(rows.images[0][::2], again) <= 1 and far(rows.images[0][1::2], again) <= 1      # twice, without a draw
    assert (rows.images[1][::2] != rows.images[1][1::2]).any()


@pytest.mark.slow
def test_interpolation_begins_and_ends_at_pictures(pipe, again):
    rows = pipe.edit.interpolate(DIGITS, values=[0.0, 0.5, 1.0]).images
    assert rows.shape == (3, 2, 8, 8, 1)
    assert far(rows[0], again[:2]) <= 1 and far(rows[2], again[1:]) <= 1
    assert far(rows[1], rows[0]) > 0 and far(rows[1], rows[2]) > 0


@pytest.mark.slow
def test_a_difference_of_texts_begins_at_the_picture(pipe, again):
    rows = pipe.edit.text_diff(DIGITS, ONE, THREE, values=[0.0, 0.5]).images
    assert far(rows[0], again) <= 1 and far(rows[1], again) > 0
    back = pipe.edit.text_diff(DIGITS, THREE, ONE, values=[0.5]).images[0]
    assert far(back, rows[1]) > 0


def test_all_components_are_the_embedding_itself(pipe):
    """From the seed's noise and without a text, as a call with the embeddings is."""
    rows = pipe.edit.components(DIGITS, values=[1, FEATURES], seed=4).images
    y = np.asarray(embed(jnp.asarray(to_unit(DIGITS))))
    assert far(rows[1], pipe(Request(embedding=y), num=3, seed=4).images) <= 1
    first = 0.3 + (y - 0.3) * (np.arange(FEATURES) < 1)                         # the mean, and the first axis
    assert far(rows[0], pipe(Request(embedding=np.float32(first)), num=3, seed=4).images) <= 1


def test_the_way_back_is_ddim_under_the_recipe_s_guidance(pipe, again):
    np.testing.assert_array_equal(pipe.using(sampler="heun").edit.variations(DIGITS, values=[0.0]).images[0], again)
    assert far(pipe.using(guidance=3.0).edit.variations(DIGITS, values=[0.0]).images[0], again) > 0


def test_components_are_sampled_as_the_recipe_says(pipe):
    """They start from the seed's noise, so that no sampler has to go back."""
    y = np.asarray(embed(jnp.asarray(to_unit(DIGITS))))
    heun = pipe.using(sampler="heun", temperature=0.8)
    rows = heun.edit.components(DIGITS, values=[FEATURES], seed=4).images
    assert far(rows[0], heun(Request(embedding=y), num=3, seed=4).images) <= 1
    assert far(rows[0], pipe.edit.components(DIGITS, values=[FEATURES], seed=4).images[0]) > 1
    with pytest.raises(ConfigError, match="op variations starts from the pictures' own noise: leave temperature at 1"):
        heun.edit.variations(DIGITS)


def upsampler():
    return Pipeline(Run("runs/up", 0, "params", {}, model_of(page(LOW_RES, side=16))), Recipe(steps=2))


def test_upsamplers_follow(pipe):
    larger = upsampler()
    rows = replace(pipe, upsamplers=(larger,)).edit.variations(DIGITS, values=[0.0]).images
    assert rows.shape == (1, 3, 16, 16, 1)


@pytest.mark.slow
def test_a_meter_counts_the_steps_and_changes_nothing(pipe, again):
    """Those of the way up, which all rows start from, of every row, and of the upsamplers."""
    meter = Count()
    rows = replace(pipe, meter=meter).edit.variations(DIGITS, values=[0.0, 0]).images
    assert meter.done == 4 + 2 * 4
    for row in rows:
        np.testing.assert_array_equal(row, again)
    meter, large = Count(), replace(pipe, upsamplers=(upsampler(),))
    rows = replace(large, meter=meter).edit.components(DIGITS, values=[1, FEATURES], seed=4).images
    assert meter.done == 2 * (4 + 2)
    np.testing.assert_array_equal(rows, large.edit.components(DIGITS, values=[1, FEATURES], seed=4).images)


@pytest.mark.parametrize(("edit", "says"), [
    (lambda e: e.variations(DIGITS, values=[]), "op variations needs values"),
    (lambda e: e.variations(DIGITS, values=[1.5]), "a value of variations .--values. is 0 ... 1, got 1.5"),
    (lambda e: e.variations(DIGITS, num=0), "num is 1 ... 10000000, got 0"),
    (lambda e: e.interpolate(DIGITS[:1]), "op interpolate needs two pictures or more"),
    (lambda e: e.text_diff(DIGITS, "a thre", ONE), "unknown word 'thre'"),
    (lambda e: e.components(DIGITS, values=[0]), "a value of components .--values. is 1 or more, got 0"),
    (lambda e: e.components(DIGITS, values=[7]), "--values are numbers of components, 1 ... 6"),
    (lambda e: e.components(DIGITS, values=[1.5]), "a value of components .--values. is a whole number, got 1.5"),
    (lambda e: e.components(np.zeros((1, 4, 4, 1), np.uint8)), r"--images has pictures of \(4, 4, 1\)"),
    (lambda e: e.text_diff(DIGITS, 3, ONE), "prompt .--prompt. is a text"),
    (lambda e: e.interpolate(DIGITS, seed=1), "op interpolate draws nothing here: leave seed"),
    (lambda e: e.text_diff(DIGITS, ONE, THREE, seed=1), "op text_diff draws nothing here"),
    (lambda e: e.variations(DIGITS, values=[0], seed=1), "op variations draws nothing here"),
    (lambda e: e.interpolate(DIGITS, values=[1.5]), "a value of interpolate .--values. is 0 ... 1"),
    (lambda e: e.text_diff(DIGITS, ONE, THREE, values=[float("nan")]), "not finite"),
], ids=["no values", "eta", "num", "single", "word", "none", "many", "half", "shape",
        "no text", "no draw", "of texts", "eta 0", "beyond", "nan"])
def test_edits_that_make_no_sense_are_one_line(pipe, edit, says):
    meter = Count()
    with pytest.raises(ConfigError, match=says) as error:
        edit(replace(pipe, meter=meter).edit)
    assert "\n" not in str(error.value) and not meter.done                                  # no bar stands over it


def test_a_clip_without_statistics_has_no_components():
    task = replace(runs().decoder.task, first_stage=replace(EMBEDDER, components=0))
    run = runs().decoder._replace(model=runs().decoder.model.replace(task=task))
    with pytest.raises(ConfigError, match="this model came without principal components"):
        Pipeline(run, Recipe(steps=2)).edit.components(DIGITS)
