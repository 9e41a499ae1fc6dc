"""How often a picture asks the networks: by the formulas of the samplers, and beside what papers state."""
import dataclasses

import pytest
from pages import page

from diffusion_jax.pipelines.calls import calls_of, calls_of_draw, calls_of_recipe
from diffusion_jax.pipelines.dalle import Draw
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.train.state import plain, task_of


@pytest.mark.parametrize(("name", "recipe", "number"), [
    ("digits", dict(steps=7), 7),
    ("digits", dict(steps=7, guidance=2.0), 14),            # with the condition and without
    ("digits", dict(steps=7, guidance=2.0, cads="s=0.1"), 14),
    ("digits", dict(steps=6, sampler="heun"), 11),        # the last step ends at no noise, where nothing is to be corrected
    ("digits", dict(steps=6, sampler="dpmpp_2m"), 6),
    ("digits", dict(steps=6, sampler="plms"), 7),           # one more at its start, 2202.09778
    ("digits_edm2", dict(sampler="edm", steps=18, times="karras"), 35),         # 2206.00364, its "NFE=35"
])
def test_calls_of_a_diffusion_model(name, recipe, number):
    task = task_of(plain(page(name)))
    assert calls_of_recipe(Recipe(**recipe), task) == number


def test_a_weaker_model_is_called_too():
    task = task_of(plain(page("digits_edm2")))
    assert calls_of_recipe(Recipe(steps=3, guidance=2.0), task, weak=True) == 6


def test_each_token_is_a_call():
    assert calls_of_draw(Draw(), 16) == 16 and calls_of_draw(dataclasses.replace(Draw(), guidance=3.0), 16) == 32


def test_of_a_pipeline(folders):
    pipe = pipeline(folders.label).using(steps=6, guidance=1.0)
    assert calls_of(pipe) == 6 and calls_of(pipe.using(guidance=3.0)) == 12
