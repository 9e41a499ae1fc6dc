"""The conditioner of Stable Diffusion XL: nothing said, sizes, and what is refused. Its numbers are goldens (sdxl)."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exports import filled

from diffusion_jax.build import ConfigError
from diffusion_jax.models.clip import TextTower
from diffusion_jax.models.sdxl_text import XLText

SMALL, LARGE = TextTower(None, 30, 5, 8, 2, 2), TextTower(6, 30, 5, 12, 3, 2, act="gelu")
TOKENS = jnp.tile(jnp.arange(10, dtype=jnp.int32)[None], (2, 1))


@pytest.fixture(scope="module")
def text():
    """(module, parameters)."""
    module = XLText(LARGE, SMALL, width=16, waves=4, context=5)
    return module, filled(jax.eval_shape(module.init, jax.random.key(0), {"tokens": TOKENS}))


def test_what_the_network_sees(text):
    module, params = text
    cond = module.apply(params, {"tokens": TOKENS})
    assert cond["seq"].shape == (2, 5, 8 + 12) and cond["vec"].shape == (2, 16)
    told = module.apply(params, {"tokens": TOKENS, "sizes": jnp.array([module.sizes] * 2, jnp.float32)})
    np.testing.assert_array_equal(told["vec"], cond["vec"])
    other = module.apply(params, {"tokens": TOKENS, "sizes": jnp.array([[256, 1024, 0, 0, 1024, 1024.0]] * 2)})
    assert (other["vec"] != cond["vec"]).all(axis=1).all() and (other["seq"] == cond["seq"]).all()


def test_nothing_said_is_zeros_and_an_empty_text_is_a_text(text):
    module, params = text
    null = module.apply(params, module.null({"tokens": TOKENS}))
    layers = params["params"]
    waves = np.ravel([np.concatenate([np.cos(v * f), np.sin(v * f)]) for v in module.sizes for f in [np.array([1, 1e-2])]])
    h = np.concatenate([np.zeros(6), waves]) @ layers["fc1"]["kernel"] + np.asarray(layers["fc1"]["bias"])
    by_hand = h / (1 + np.exp(-h)) @ layers["fc2"]["kernel"] + np.asarray(layers["fc2"]["bias"])
    assert not np.asarray(null["seq"]).any()
    np.testing.assert_allclose(null["vec"][0], by_hand, atol=1e-4)                          # the sizes are told all the same
    empty = module.clone(zeros=False).null({"tokens": TOKENS})
    assert empty["tokens"][0].tolist() == [28, 29, 29, 29, 29, 28, 29, 0, 0, 0]
    assert np.asarray(module.apply(params, empty)["seq"]).any()


def test_the_refiner_is_led_away_from_a_low_score():
    module = XLText(LARGE, width=16, waves=4, context=5, sizes=(64, 64, 0, 0, 6.0), negative_sizes=(64, 64, 0, 0, 2.5),
                    zeros=False)
    null = module.null({"tokens": TOKENS[:, :5]})
    assert null["tokens"][0].tolist() == [28, 29, 0, 0, 0] and null["sizes"].tolist() == [[64, 64, 0, 0, 2.5]] * 2


def test_parts_of_the_sizes_stand_in_their_place(text):
    module, params = text
    raw = {"tokens": TOKENS, "original_size": jnp.array([[256.0, 512]] * 2), "crop": jnp.array([[8.0, 0]] * 2)}
    whole = jnp.array([[256, 512, 8, 0, 1024, 1024.0]] * 2)
    np.testing.assert_array_equal(module.sizes_of(raw, TOKENS), whole)
    np.testing.assert_array_equal(
        module.apply(params, raw)["vec"], module.apply(params, {"tokens": TOKENS, "sizes": whole})["vec"])
    refiner = XLText(LARGE, width=16, waves=4, context=5, sizes=(64, 64, 0, 0, 6.0), negative_sizes=(64, 64, 0, 0, 2.5))
    null = refiner.null(raw | {"tokens": TOKENS[:, :5]})
    assert refiner.sizes_of(null, TOKENS).tolist() == [[256, 512, 8, 0, 2.5]] * 2           # only the score is another one
    assert module.optional == ("sizes", "original_size", "crop", "target_size") and refiner.optional == module.optional[:3]


@pytest.mark.parametrize("call, says", [
    (lambda: XLText(LARGE, sizes=(1.0, 2.0), negative_sizes=(1.0,)), "sizes are 2 numbers, negative_sizes 1"),
    (lambda: XLText(LARGE, SMALL, clip_skip=2), "0 ... 1 of the 2 layers"),
    (lambda: XLText(LARGE, SMALL, context=5).check({"tokens": TOKENS[:, :5]}), r"tokens \[B, 10\] int, 5 of each CLIP"),
    (lambda: XLText(LARGE, SMALL, context=5).check({"tokens": TOKENS, "sizes": np.zeros((2, 5))}), r"sizes are \[B, 6\]"),
    (lambda: XLText(LARGE, SMALL, context=5).check({"tokens": TOKENS, "crop": np.zeros(2)}), r"crop is \[B, 2\]"),
])
def test_refusals(call, says):
    with pytest.raises(ConfigError, match=says) as error:
        call()
    assert "\n" not in str(error.value)
