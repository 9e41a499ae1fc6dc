"""Judges: which of several pictures fit best."""
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines import rerank
from diffusion_jax.runs.folder import Model, Run
from diffusion_jax.tasks import kinds
from pipelines.toy_task import classifier_page, data, model_of, unused

POOL = np.random.default_rng(0).integers(0, 255, (2, 5, 8, 8, 1), np.uint8)
TEXTS = ("a handwritten three", "a handwritten nine")
MAKER = Run("runs/maker", 0, "params", {"data": data()}, None)
CLASSIFIER = Run("runs/judge", 0, "params", {"data": data()}, model_of(classifier_page()))


@dataclass(frozen=True)
class Towers:
    """A CLIP whose embeddings are angles: of the brightness of a picture, of the sum of a text's tokens."""

    shape = (8, 8, 1)
    noun = "a CLIP"
    target = "clip_text"
    needs = ("tokens",)
    num_classes = 0
    init = memory = loss = project = log_prob = features = unused

    def encode_image(self, params, images):
        return jnp.stack([jnp.cos(images.mean((1, 2, 3))), jnp.sin(images.mean((1, 2, 3)))], axis=-1)

    def encode_text(self, params, tokens):
        return jnp.stack([jnp.cos(params * tokens.sum(1)), jnp.sin(params * tokens.sum(1))], axis=-1)


CLIP = Run("runs/clip", 0, "params", {"data": data()}, Model(jnp.float32(0.1), None, Towers()))


def scores(judge, *goals):
    return rerank.scores(judge, rerank.goals(judge, MAKER, *goals), POOL)


def test_the_best_of_many_come_first():
    pictures = np.arange(6).reshape(2, 3, 1, 1, 1)
    best = rerank.best(pictures, np.array([[0.1, 0.9, 0.5], [3, 2, 1]]), 2)
    assert best.reshape(2, 2).tolist() == [[1, 2], [3, 4]]


def test_equals_stay_in_their_order():
    assert rerank.best(np.arange(4).reshape(1, 4, 1, 1, 1), np.zeros((1, 4)), 3).ravel().tolist() == [0, 1, 2]


def test_a_clip_judges_by_the_angle_between_text_and_picture():
    assert isinstance(Towers(), kinds.TwoTowers)
    brightness = (POOL / 127.5 - 1).mean((2, 3, 4))
    angle = 0.1 * np.array([1 + 2 + 6, 1 + 2 + 12])                              # tokens: a, handwritten, zero is 3
    want = np.cos(brightness - angle[:, None])
    np.testing.assert_allclose(scores(CLIP, TEXTS), want, atol=1e-5)


def test_a_classifier_judges_by_the_label_of_the_caption():
    slope = np.asarray(CLASSIFIER.model.params["model"]["slope"])
    logits = (POOL / 127.5 - 1).mean((2, 3, 4))[..., None] * slope
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = np.stack([logs[0, :, 3], logs[1, :, 9]])
    np.testing.assert_allclose(scores(CLASSIFIER, TEXTS), want, atol=1e-5)
    np.testing.assert_allclose(scores(CLASSIFIER, None, [3, 9]), want, atol=1e-5)
    sure = rerank.sureness(CLASSIFIER.model, jnp.asarray(POOL[0] / 127.5 - 1, jnp.float32), jnp.full(5, 3))
    np.testing.assert_allclose(sure, want[0], atol=1e-5)


def test_a_caption_that_nobody_wrote_has_no_label():
    assert rerank.labels_of(MAKER, TEXTS) == [3, 9]
    with pytest.raises(ConfigError, match="no training image is captioned 'a three', so a classifier cannot rank images of it"):
        rerank.labels_of(MAKER, ["a three"])
    with pytest.raises(ConfigError, match="this model came without data: a classifier ranks by the labels"):
        rerank.labels_of(MAKER._replace(config={}), TEXTS)


def test_a_clip_reads_a_text_whole_or_says_so():
    long = ("a a handwritten three",)
    with pytest.raises(ConfigError, match="4 tokens|4 words|truncate"):
        rerank.goals(CLIP, MAKER, long)
    cut = rerank.goals(CLIP, MAKER, long, truncate=True)
    np.testing.assert_allclose(cut, [[np.cos(0.4), np.sin(0.4)]], atol=1e-6)     # tokens: a, a, handwritten


def test_a_clip_wants_a_text_and_a_classifier_pictures_of_its_size():
    with pytest.raises(ConfigError, match="a CLIP judges images by a text: give a prompt"):
        rerank.goals(CLIP, MAKER, None, [3, 9])
    with pytest.raises(ConfigError, match="--rerank runs/judge knows 10 classes, not label 12: choose another"):
        rerank.goals(CLASSIFIER, MAKER, None, [3, 12])
    with pytest.raises(ConfigError, match="--rerank runs/judge knows 10 classes, not label -1: choose another"):
        rerank.goals(CLASSIFIER, MAKER, None, [-1, 3])
    rerank.check(CLASSIFIER, (8, 8, 1))
    with pytest.raises(ConfigError, match=r"--rerank runs/judge judges images of \(8, 8, 1\), this model makes \(16, 16, 1\)"):
        rerank.check(CLASSIFIER, (16, 16, 1))


def test_a_clip_judges_pictures_of_any_size_as_pillow_scales_them():
    large = np.random.default_rng(1).integers(0, 255, (2, 3, 20, 12, 1), np.uint8)
    rerank.check(CLIP, large.shape[2:])
    scaled = [[Image.fromarray(x[..., 0]).resize((8, 13), Image.Resampling.BICUBIC) for x in row] for row in large]
    small = [[np.asarray(x)[2:10] for x in row] for row in scaled]
    goals = rerank.goals(CLIP, MAKER, TEXTS)
    expected = rerank.scores(CLIP, goals, np.array(small)[..., None])
    np.testing.assert_allclose(rerank.scores(CLIP, goals, large), expected, atol=1e-6)
