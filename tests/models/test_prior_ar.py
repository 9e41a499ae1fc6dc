"""unCLIP's autoregressive prior: without layers a Markov chain in closed form; with them, what it sees and how it samples."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.prior_ar import ARPrior, pick

KEY = jax.random.key(0)
SEQ = np.random.default_rng(1).normal(size=(2, 5, 7)).astype(np.float32)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
DRAW = np.random.default_rng(0).normal(size=(4, 2, 6)).astype(np.float32)
TEXTS = {"clip_text": DRAW[1], "text_states": SEQ, "text_mask": MASK, "clip_empty": DRAW[2], "empty_states": SEQ + 1,
         "empty_mask": ~MASK | (np.arange(5) < 1)}
RAW = {**TEXTS, "clip_dot": np.array([0, 2])}


@pytest.mark.slow
def test_the_autoregressive_prior_sees_no_later_code_and_samples_what_it_says():
    model = ARPrior(length=4, context=5, width=8, depth=2, heads=2, codes=7, dots=3)
    raw = {**TEXTS, "clip_dot": np.array([0, 2])}
    codes = np.array([[1, 2, 3, 4], [6, 0, 5, 1]])
    params = jax.jit(model.init)(KEY, raw, codes)["params"]
    run = jax.jit(lambda raw, codes: model.apply({"params": params}, raw, codes))
    logits = run(raw, codes)
    assert logits.shape == (2, 4, 7)
    np.testing.assert_allclose(run(raw, codes[:, ::-1])[:, 0], logits[:, 0], atol=1e-6)
    assert np.abs(run({**raw, "clip_dot": raw["clip_dot"][::-1]}, codes) - logits).max() > 1e-4
    found, cache, mask = jax.jit(lambda: model.apply({"params": params}, raw, 4, method="prefill"))()
    step = jax.jit(lambda code, place, cache: model.apply({"params": params}, code, place, cache, mask, method="step"))
    for place in range(3):
        np.testing.assert_allclose(found, logits[:, place], atol=1e-5)
        found, cache = step(codes[:, place], jnp.int32(place), cache)
    keys = jax.random.split(KEY, 2)
    greedy = jax.jit(lambda: pick(model, params, raw, 3, keys, guided=False, temperature=1e-6))()
    best = []
    for place in range(3):
        known = jnp.stack([*best, jnp.zeros(2, int)], axis=1)
        best.append(jnp.argmax(run(raw, jnp.pad(known, ((0, 0), (0, 4 - known.shape[1]))))[:, place], axis=-1))
    np.testing.assert_array_equal(greedy, jnp.stack(best, axis=1))


CHAIN = ARPrior(length=4, context=5, width=8, depth=0, heads=2, codes=7, dots=3)


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(CHAIN.init, KEY, RAW, np.zeros((2, 4), int))["params"]
    rng = np.random.default_rng(10)
    return jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), shapes)


def after(params, token, place):
    """Logits at a place of the row without layers: of its own token and position only."""
    h = token + params["position"][place]
    h = (h - h.mean()) / np.sqrt(h.var() + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    return h @ params["head"]["kernel"] + params["head"]["bias"]


def test_without_layers_a_code_follows_from_the_one_before(params):
    codes = np.array([[1, 2, 3, 4], [6, 0, 5, 1]])
    dot, code = params["dot"]["embedding"], params["code"]["embedding"]
    want = [[after(params, dot[d], 6), *(after(params, code[c], 7 + k) for k, c in enumerate(row[:3]))]
            for d, row in zip(RAW["clip_dot"], codes, strict=True)]
    apply = jax.jit(CHAIN.apply)
    np.testing.assert_allclose(apply({"params": params}, {**RAW, "with_text": np.array([1, 1])}, codes), want, atol=1e-5)
    dropped = apply({"params": params}, {**RAW, "with_text": np.array([0, 1])}, codes)
    np.testing.assert_allclose(dropped[0, 0], after(params, dot[3], 6), atol=1e-5)                # the dot of no text
    np.testing.assert_allclose(dropped[1], want[1], atol=1e-5)


def test_a_cold_draw_takes_the_likeliest_code_of_the_guided_logits(params):
    dot, code = params["dot"]["embedding"], params["code"]["embedding"]
    keys, null = jax.random.split(KEY, 2), after(params, dot[3], 6)
    draw = jax.jit(lambda params, guidance: pick(CHAIN, params, RAW, 3, keys, guidance, temperature=1e-6))
    firsts = set()
    for guidance in (-1.0, 0.0, 0.5, 3.0):
        for row, d in zip(np.asarray(draw(params, guidance)), RAW["clip_dot"], strict=True):
            assert row[0] == np.argmax(null + guidance * (after(params, dot[d], 6) - null))
            assert [np.argmax(after(params, code[c], 7 + k)) for k, c in enumerate(row[:2])] == row[1:].tolist()
            firsts.add(int(row[0]))
    assert len(firsts) == 4                                                    # strengths that differ choose differently
