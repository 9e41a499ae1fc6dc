"""Sizes that Stable Diffusion XL is told: of a request, of the command line, and refused where a model is not told them."""
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.clip import TextTower
from diffusion_jax.models.cond import Joint
from diffusion_jax.models.guidance_weight import GuidanceWeight
from diffusion_jax.models.sdxl_text import XLText
from diffusion_jax.modes import sample
from diffusion_jax.modes.options import built
from diffusion_jax.pipelines.conditions import conditions_of
from diffusion_jax.pipelines.request import Request, pair
from diffusion_jax.pipelines.session import check_edit
from pipelines.toy_task import make

TOWER = TextTower(6, 30, 5, 8, 2, 2)
XL = XLText(TOWER, TOWER.clone(features=None), width=8, waves=4, context=5)
REFINER = XLText(TOWER, width=8, waves=4, context=5, sizes=(64, 64, 0, 0, 6.0))


def run_of(cond):
    """A stand-in for a run that reads a text."""
    length = cond.parts[0].length if isinstance(cond, Joint) else cond.length
    return SimpleNamespace(task=make(cond=cond), config={}, class_names=(),
                           tokens=lambda prompts, truncate: np.ones((len(prompts), length), np.int32))


@pytest.mark.parametrize("value", [(512, 768), [512, 768], "512,768", " 512, 768", np.array([512, 768])])
def test_two_sizes_are_text_or_numbers(value):
    assert pair("target_size", value) == (512, 768)


@pytest.mark.parametrize("cond", [XL, Joint((XL, GuidanceWeight()))])
def test_a_request_tells_them(cond):
    request = Request(["a", "b"], original_size="512,768", crop=(0, 64))
    raw = conditions_of(run_of(cond), request, 4)
    assert {name: value.shape for name, value in raw.items()} == {"tokens": (4, 10), "original_size": (4, 2), "crop": (4, 2)}
    assert raw["original_size"][3].tolist() == [512, 768] and raw["crop"][0].tolist() == [0, 64]
    assert set(conditions_of(run_of(cond), Request("a"), 1)) == {"tokens"}                # as before


def test_flags_and_sessions_spell_them():
    options = built(sample.Options, {"prompt": ["a"], "original_size": "512,512", "crop": "0,0", "target_size": "64,64"})
    assert [pair(*item) for item in options.request.sizes.items()] == [(512, 512), (0, 0), (64, 64)]
    check_edit({"rect": [[0, 0, 1, 1]], "prompt": "a", "crop": [8, 8]})
    with pytest.raises(ConfigError, match="crop .* two whole numbers"):
        check_edit({"rect": [[0, 0, 1, 1]], "crop": [8]})


@pytest.mark.parametrize("cond, field", [(REFINER, "target_size"), *((None, name) for name in ("original_size", "crop"))])
def test_models_that_are_not_told_them_refuse(cond, field):
    run = run_of(cond) if cond else SimpleNamespace(task=make(), config={}, class_names=())
    request = Request("a" if cond else None, **{field: (64, 64)})
    with pytest.raises(ConfigError, match=rf"{field} \(--{field}\) is for models that were told the sizes.*leave it out"):
        conditions_of(run, request, 1)
