"""GLIDE's conditioners: padding takes part, masks are random rectangles, and what is refused. The numbers are goldens."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.clip import ViT
from diffusion_jax.models.cond import Joint, LowRes
from diffusion_jax.models.glide import PRESETS, Inpaint, Text, preset, random_masks
from diffusion_jax.nn.resample import area, nearest

KEY = jax.random.key(0)
TEXT = Text(vocab=11, context=4, width=8, layers=1, heads=2, out=6)
TOKENS = np.array([[3, 4, 10, 10], [5, 10, 10, 10]], np.int32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(TEXT.init)(KEY, {"tokens": TOKENS})


def test_the_mask_follows_from_the_tokens(params):
    apply = jax.jit(TEXT.apply)
    found = apply(params, {"tokens": TOKENS})
    assert found["vec"].shape == (2, 6) and found["seq"].shape == (2, 4, 8)
    jax.tree.map(np.testing.assert_array_equal, found, apply(params, {"tokens": TOKENS, "tokens_mask": TOKENS != 10}))
    null = TEXT.null({"tokens": TOKENS, "tokens_mask": TOKENS != 10})
    assert (null["tokens"] == 10).all() and not null["tokens_mask"].any()
    seen = apply(params, null)["vec"]
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-5)


def test_without_padding_every_token_counts(params):
    plain = TEXT.clone(padding=False, norm=False)
    weights = {name: value for name, value in params["params"].items() if name not in ("padding", "norm")}
    apply = jax.jit(plain.apply)
    a, b = (apply({"params": weights}, {"tokens": TOKENS, "tokens_mask": mask}) for mask in (TOKENS < 9, TOKENS > 99))
    np.testing.assert_array_equal(a["seq"], b["seq"])


def test_masks_erase_rectangles_and_some_images_whole():
    masks = np.asarray(jax.jit(random_masks, static_argnums=(1, 2))(KEY, (200, 16, 12, 3), 0.2))
    assert masks.shape == (200, 16, 12, 1) and set(np.unique(masks)) == {0.0, 1.0}
    share = masks.mean((1, 2, 3))
    assert 0.1 < np.mean(share == 0) < 0.35 and 0.3 < share[share > 0].mean() < 0.9
    assert np.std(masks[:, 8, 6, 0]) > 0


@pytest.mark.slow
def test_an_inpainter_trains_on_its_own_image_and_samples_with_what_is_given():
    image = np.float32(np.random.RandomState(0).rand(2, 8, 8, 3))
    raw = Inpaint().prepare({"image": image}, KEY)
    cat = Inpaint().apply({}, raw)["cat"]
    assert cat.shape == (2, 8, 8, 4)
    np.testing.assert_array_equal(cat[..., :3], image * raw["mask"])
    given = {"image": image, "mask": np.ones((2, 8, 8, 1)), "known": 0 * image}
    assert all(Inpaint().prepare(given, KEY)[key] is given[key] for key in given)
    Inpaint().check(given)


def test_images_of_two_sizes_stand_one_behind_the_other():
    joint = Joint((Inpaint(), LowRes(2)))
    image = np.float32(np.random.RandomState(0).rand(1, 8, 8, 3))
    raw = joint.prepare({"image": image}, KEY)
    cat = joint.apply({}, raw)["cat"]
    assert cat.shape == (1, 8, 8, 7)
    np.testing.assert_array_equal(cat[..., 3:4], raw["mask"])


@pytest.mark.parametrize("cond, raw, message", [
    (TEXT, {"tokens": TOKENS[:, :3]}, r"tokens \[B, 4\], not \(2, 3\)"),
    (TEXT, {"tokens": TOKENS + 1}, "token 11 is outside 0 ... 10"),
    (Inpaint(), {"mask": np.ones((1, 4, 4, 3)), "known": np.ones((1, 4, 4, 3))}, "a mask is"),
    (Inpaint(), {"mask": np.full((1, 4, 4, 1), 0.5), "known": np.ones((1, 4, 4, 3))}, "of 0 and 1"),
])
def test_what_is_refused(cond, raw, message):
    with pytest.raises(ConfigError, match=message):
        cond.check(raw)


def test_a_tower_for_noised_images_wants_their_steps():
    x = np.zeros((1, 8, 8, 3))
    for steps, label in ((0, np.zeros(1)), (10, None)):
        with pytest.raises(ConfigError, match=f"made for {steps} noise levels"):
            jax.eval_shape(ViT(4, size=8, patch=4, width=8, layers=1, heads=1, steps=steps).init, KEY, x, label)


@pytest.mark.parametrize("name, inpaint", [(name, inpaint) for name in PRESETS for inpaint in (False, True)])
def test_presets_build(name, inpaint):
    model, cond = map(build, preset(name, inpaint))
    assert model.width == 192 and cond.droppable == ("tokens",)
    assert ("mask" in cond.keys) == inpaint and ("low_res" in cond.keys) == ("upsample" in name)
    with pytest.raises(ConfigError, match="did you mean 'glide-base-64'"):
        preset("glide-base-46")


def test_nearest_and_area():
    x = jnp.arange(4.0).reshape(1, 4, 1, 1)
    np.testing.assert_array_equal(nearest(x, 2, 3)[0, :, :, 0], [[0] * 3, [2] * 3])
    np.testing.assert_allclose(area(x, 3, 1)[0, :, 0, 0], [0.5, 1.5, 2.5])
