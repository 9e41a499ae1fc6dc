"""The frozen CLIP of unCLIP's parts: its statistics, its codes, and what it sees of a batch."""
from dataclasses import replace

import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.clip import CLIP, TextTower, ViT
from diffusion_jax.models.unclip import EMPTY, TEXT
from diffusion_jax.tasks.clip import Contrastive
from diffusion_jax.tasks.embedder import CODES, DOTS, Embedder, statistics

TEXT_TOWER = TextTower(6, vocab=9, context=5, width=8, layers=1, heads=2)
MODEL = CLIP(ViT(6, size=4, patch=2, width=8, layers=1, heads=2), TEXT_TOWER, mean=(0.5,), std=(0.5,))
EMBEDDER = Embedder(Contrastive(MODEL, (4, 4, 1)), empty=(7, 8, 0))
RNG = np.random.default_rng(0)
TOKENS = np.array([[7, 1, 8, 0, 0], [7, 8, 0, 0, 0], [7, 1, 2, 3, 8]])
BATCH = {"image": RNG.normal(size=(3, 4, 4, 1)).astype(np.float32), "tokens": TOKENS}
TURN = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
CLOUD = (RNG.normal(size=(500, 6)) * [3, 1, 0.5, 0.05, 0.02, 0.01] @ TURN + 2).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    """(the embedder with the statistics of `CLOUD`, its parameters)."""
    numbers, components = statistics(CLOUD, CLOUD + RNG.normal(size=CLOUD.shape))
    embedder = replace(EMBEDDER, components=components)
    return embedder, jax.jit(embedder.init)(jax.random.key(0), BATCH) | numbers


def test_components_explain_the_variance_most_first(fitted):
    embedder, params = fitted
    assert embedder.components == 3
    left = [np.mean((np.asarray(embedder.reduced(params, CLOUD, n)) - CLOUD) ** 2) for n in (1, 2, 3, 6)]
    assert left == sorted(left, reverse=True) and left[2] < 0.01 * CLOUD.var(0).mean() and left[3] < 1e-6
    codes = np.asarray(embedder.encode(params, CLOUD))
    assert codes.shape == (500, 3) and codes.min() == 0 and codes.max() == CODES - 1
    again = np.asarray(embedder.decode(params, codes))
    np.testing.assert_allclose(again, embedder.reduced(params, CLOUD, 3), atol=0.02)
    np.testing.assert_array_equal(embedder.encode(params, again), codes)


def test_standardised_embeddings_have_no_mean_and_unit_variance(fitted):
    embedder, params = fitted
    x = np.asarray(embedder.standardised(params, CLOUD))
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(x.std(0), 1, atol=1e-3)
    np.testing.assert_allclose(embedder.restored(params, x), CLOUD, atol=1e-4)


def test_dot_tokens_are_as_frequent_as_each_other():
    text = CLOUD + RNG.normal(size=CLOUD.shape)
    numbers, _ = statistics(CLOUD, text)
    counts = np.bincount(EMBEDDER.dot(numbers, CLOUD, text), minlength=DOTS)
    assert counts.max() - counts.min() <= 3


def test_what_a_batch_is_prepared_to(fitted):
    embedder, params = fitted
    raw = jax.jit(embedder.prepare)(params, BATCH)
    np.testing.assert_allclose(np.linalg.norm(raw["clip_image"], axis=1), 6**0.5, rtol=1e-5)
    np.testing.assert_array_equal(raw["text_mask"].sum(1), [3, 2, 5])
    np.testing.assert_array_equal(raw["empty_mask"].sum(1), [2, 2, 2])
    np.testing.assert_allclose(raw["empty_states"][0], raw["text_states"][1], atol=1e-6)        # the second text is the empty one
    blank = embedder.blank(BATCH)
    assert {name: (value.shape, value.dtype) for name, value in blank.items() if name in (*TEXT, *EMPTY, "clip_image")} == {
        name: (value.shape, value.dtype) for name, value in raw.items() if name in (*TEXT, *EMPTY, "clip_image")}
    assert jax.jit(embedder.embed)(params, np.zeros((1, 8, 8, 1), np.float32)).shape == (1, 6)      # another size
    plain = jax.jit(replace(embedder, unit=False).embed)(params, BATCH["image"])
    assert np.ptp(np.linalg.norm(plain, axis=1)) > 1e-4


def test_without_an_image_tower_pictures_are_refused(fitted):
    embedder, params = fitted
    blind = replace(embedder, clip=replace(embedder.clip, model=CLIP(None, TEXT_TOWER)))
    with pytest.raises(ConfigError, match="without CLIP's image tower"):
        blind.embed(params, BATCH["image"])
