"""The digits against scikit-learn's own arrays."""
import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.digits import Digits


def pixels(source):
    return np.stack([source[i]["image"] for i in range(len(source))]), np.array([source[i]["label"] for i in range(len(source))])


def test_all_is_the_set_of_scikit_learn():
    images, labels = pixels(Digits("all"))
    assert images.shape == (1797, 8, 8, 1) and images.dtype == np.uint8
    np.testing.assert_array_equal(labels, load_digits().target)
    np.testing.assert_array_equal(np.round(images[..., 0] / 255 * 16), load_digits().images)  # nothing is lost
    assert images.min() == 0 and images.max() == 255 and images[images > 0].min() == 16


def test_train_and_test_are_a_stratified_partition():
    train, train_labels = pixels(Digits("train"))
    test, test_labels = pixels(Digits("test"))
    assert len(train) == 1500 and len(test) == 297
    share = np.bincount(load_digits().target) * 297 / 1797
    assert abs(np.bincount(test_labels) - share).max() <= 1
    together = sorted(image.tobytes() + bytes([label]) for image, label in zip(
        np.concatenate([train, test]), np.concatenate([train_labels, test_labels]), strict=True))
    images, labels = pixels(Digits("all"))
    assert together == sorted(image.tobytes() + bytes([label]) for image, label in zip(images, labels, strict=True))


def test_it_is_config():
    source = build({"name": "diffusion_jax.data.digits:Digits", "split": "test"})
    assert source == Digits("test") and hash(source) == hash(Digits("test")) and source != Digits()
    assert source.names[source[0]["label"]] == str(source[0]["label"])
    with pytest.raises(ConfigError, match="'train'"):
        Digits("trian")
