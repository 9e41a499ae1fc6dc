"""unCLIP's conditioners: what they see and what they refuse. Their numbers are pinned by goldens."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.unclip import ImageText, Relay, Text
from diffusion_jax.pipelines.unclip import slerp

KEY = jax.random.key(0)
DRAW = np.random.default_rng(0).normal(size=(4, 2, 6)).astype(np.float32)
SEQ = np.random.default_rng(1).normal(size=(2, 5, 7)).astype(np.float32)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)


def test_the_decoders_condition_is_learned_where_there_is_no_image():
    cond = ImageText(features=6, out=8, width=4, tokens=3)
    raw = {"clip_image": DRAW[0], "clip_text": DRAW[1], "text_states": SEQ, "text_mask": MASK}
    params = jax.jit(cond.init)(KEY, raw)
    given, null = (jax.jit(cond.apply)(params, batch) for batch in (cond.prepare(raw, KEY), cond.null(raw)))
    assert given["vec"].shape == (2, 8) and given["seq"].shape == (2, 8, 4)
    assert given["seq_mask"].tolist()[0] == [True] * 6 + [False] * 2
    np.testing.assert_array_equal(null["seq"][0, :3], null["seq"][1, :3])                      # the same learned image for both
    np.testing.assert_array_equal(null["seq"][:, 3:], given["seq"][:, 3:])                     # the text stays
    assert np.abs(given["seq"][0, :3] - given["seq"][1, :3]).max() > 0
    with pytest.raises(ConfigError, match=r"clip_text is \[B, 6\], not \(2, 5\)"):
        cond.check(raw | {"clip_text": DRAW[1][:, :5]})


def test_slerp_keeps_unit_length_and_its_ends():
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in DRAW[:2])
    for v in (0.0, 0.25, 1.0):
        np.testing.assert_allclose(np.linalg.norm(slerp(a, b, v), axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(slerp(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 1.0), b, atol=1e-6)
    np.testing.assert_allclose(slerp(a, a, 0.3), a, atol=1e-6)
    half = np.arccos(np.sum(a * b, axis=-1)) / 2
    np.testing.assert_allclose(np.arccos(np.sum(a * slerp(a, b, 0.5), axis=-1)), half, rtol=1e-4)


TEXTS = {"clip_text": DRAW[1], "text_states": SEQ, "text_mask": MASK, "clip_empty": DRAW[2], "empty_states": SEQ + 1,
         "empty_mask": ~MASK | (np.arange(5) < 1)}
OWN, EMPTY = tuple(TEXTS)[:3], tuple(TEXTS)[3:]


def test_a_dropped_text_is_the_empty_text_for_prior_and_decoder():
    text = Text(features=6)
    prepared = text.prepare(TEXTS, KEY)
    given, null = text.apply({}, prepared), text.apply({}, text.null(prepared))
    for seen, names in ((given, OWN), (null, EMPTY)):
        for key, name in zip(("vec", "seq", "seq_mask"), names, strict=True):
            np.testing.assert_array_equal(seen[key], TEXTS[name])
    cond = ImageText(features=6, out=8, width=4, tokens=3)
    raw = cond.prepare({**TEXTS, "clip_image": DRAW[0]}, KEY)
    params = jax.jit(cond.init)(KEY, raw)
    run = jax.jit(cond.apply)
    swapped = {**raw, **{own: raw[empty] for own, empty in zip(OWN, EMPTY, strict=True)}}
    other = run(params, {**swapped, "with_image": 0 * raw["with_image"]})
    np.testing.assert_array_equal(run(params, cond.null(raw))["seq"], other["seq"])
    assert np.abs(run(params, raw)["vec"] - run(params, cond.null(raw))["vec"]).max() > 1e-3


def test_a_relay_hands_over_at_its_noise_label():
    class Scale(nn.Module):
        start: float

        mults = (1,)

        @nn.compact
        def __call__(self, x, noise, cond):
            return x * self.param("a", nn.initializers.constant(self.start), ())

    relay, x = Relay(Scale(2.0), Scale(3.0)), np.ones((2, 4, 4, 1), np.float32)
    params = relay.init(KEY, x, jnp.zeros(2), {})
    for noise, want in (((5.0, 5.0), (2, 2)), ((0.0, 0.0), (3, 3)), ((5.0, 0.0), (2, 3))):
        assert relay.apply(params, x, jnp.array(noise), {})[:, 0, 0, 0].tolist() == list(want)
