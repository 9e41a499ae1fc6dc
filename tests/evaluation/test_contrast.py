"""What is measured of a CLIP: retrieval, classes by their texts, features in a plane."""
import warnings
from pathlib import Path

import numpy as np
import pytest
from pages import measuring, page
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.data.image import read
from diffusion_jax.evaluation import contrast, metrics
from diffusion_jax.train.state import plain


def test_texts_of_classes():
    digits = dict(name="diffusion_jax.data.digits:Digits")
    assert contrast.class_texts({"train": digits}, None)[3] == "a handwritten three"
    assert contrast.class_texts({"train": digits}, "the digit {}")[3] == "the digit 3"


@pytest.mark.slow
def test_features_do_not_depend_on_the_batch(clip):
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), np.uint8)
    whole, parts = (contrast.image_features(clip.model, images, size) for size in (7, 3))
    np.testing.assert_allclose(whole, parts, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    tokens = clip.tokens(["a handwritten three"] * 5)
    np.testing.assert_allclose(contrast.text_features(clip.model, tokens, 2)[4], contrast.text_features(clip.model, tokens)[0],
                               atol=1e-5)


def test_pictures_of_another_size_are_seen_as_pillow_scales_them(clip):
    large = np.random.default_rng(1).integers(0, 256, (2, 12, 20, 1), np.uint8)
    small = [np.asarray(Image.fromarray(x[..., 0]).resize((13, 8), Image.Resampling.BICUBIC))[:, 2:10, None] for x in large]
    np.testing.assert_allclose(contrast.image_features(clip.model, large), contrast.image_features(clip.model, np.stack(small)),
                               atol=1e-6)


def test_images_find_texts_and_texts_images(clip):
    figures = metrics.measured(clip, measuring(num=20, batch=8)).figures
    assert figures["images"] == 20 and figures["texts"] == 8
    assert all(0 <= value <= 1 for name, value in figures.items() if "R@" in name)
    assert figures["image to text R@1 by chance"] == pytest.approx(1 / 8) and figures["image to text R@5"] > 0


def test_classes_are_told_by_their_texts(clip):
    figures = metrics.measured(clip, measuring(metric="zero_shot", num=20)).figures
    assert figures["text of class 0"] == "a handwritten zero" and figures["classes"] == 10
    assert 0 <= figures["accuracy"] <= figures["accuracy@5"] <= 1
    figures = metrics.measured(clip, measuring(metric="zero_shot", num=20, template="{}")).figures
    assert figures["text of class 0"] == "0"


def test_features_in_a_plane(clip):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Mismatched number")          # a mark for each class
        figures = metrics.measured(clip, measuring(metric="tsne", num=20)).figures
    assert figures["images"] == 20 and figures["picture"] == str(Path(clip.folder, "tsne.png"))
    assert read(figures["picture"]).shape[:2] == (800, 800)
    figures = metrics.measured(clip, measuring(metric="tsne", num=4)).figures
    assert figures["picture"] == str(Path(clip.folder, "tsne-2.png"))            # the first one stays


@pytest.mark.parametrize(("options", "says"), [
    (dict(metric="tsne", num=1), "tsne needs at least 4 images, there are 1: raise num"),
    (dict(metric="tsne", num=3), "tsne needs at least 4 images"),
    *((dict(metric="zero_shot", template=text), "write {} once") for text in ("a photo", "{} {}", "{", "}{", "{0.a}", "")),
    (dict(metric="zero_shot", template="{}" + " digit" * 500), "tokens"),
])
def test_what_cannot_be_measured_is_refused_before_an_image_is_seen(clip, monkeypatch, options, says):
    monkeypatch.setattr(contrast, "_features_of", lambda *_: pytest.fail("images are seen"))
    with pytest.raises(ConfigError, match=says):
        metrics.measured(clip, measuring(**{"num": 5} | options))


@pytest.mark.parametrize(("metric", "data", "says"), [
    ("retrieval", {}, "metric retrieval is of a run's own held-out images"),
    ("retrieval", plain(page("digits"))["data"], "retrieval needs captions"),
    ("zero_shot", plain(page("digits"))["data"], "zero_shot needs a tokenizer"),
])
def test_data_that_do_not_do(clip, metric, data, says):
    with pytest.raises(ConfigError, match=says):
        metrics.measured(clip._replace(config={**clip.config, "data": data}), measuring(metric=metric, num=5))
