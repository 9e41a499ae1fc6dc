"""Sets of images: which ones come in which batch, and how they are blurred."""
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.metrics.images import Blurred, Pictures


def gray(i):
    return {"image": np.full((2, 3, 1), i, np.uint8), "label": i % 4}


def test_batches_begin_where_they_are_told_to_and_end_with_the_set():
    images = Pictures(gray, 11, "grays")
    batches = list(images.batches([8, 0, 4, 2, 6], 4))                             # more than are read ahead
    assert len(images) == 11
    assert [batch["image"][:, 0, 0, 0].tolist() for batch in batches] == [
        [8, 9, 10], [0, 1, 2, 3], [4, 5, 6, 7], [2, 3, 4, 5], [6, 7, 8, 9]]
    assert [batch["label"].tolist() for batch in batches[:2]] == [[0, 1, 2], [0, 1, 2, 3]]
    (batch,) = Pictures(lambda i: {"image": gray(i)["image"]}, 2, "no labels").batches([0], 2)
    assert set(batch) == {"image"}


def test_what_an_image_cannot_be_is_said_with_its_number():
    def odd(i):
        return {"image": np.zeros((2 + i // 5, 3, 1), np.uint8)}

    with pytest.raises(ConfigError, match="odd: image 5 is 3x3x1, image 0 is 2x3x1"):
        list(Pictures(odd, 6, "odd").batches([0, 3], 3))


def test_blurring_keeps_flat_images_and_smooths_others():
    flat = Pictures(lambda i: {"image": np.full((9, 9, 1), 100, np.uint8)}, 2, "flat")
    dot = np.zeros((9, 9, 1), np.uint8)
    dot[4, 4] = 255
    (batch,) = Blurred(flat, 2.0).batches([0], 2)
    assert (batch["image"] == 100).all()
    (batch,) = Blurred(Pictures(lambda i: {"image": dot}, 1, "dot"), 1.0).batches([0], 1)
    assert batch["image"][0, 4, 4, 0] == round(255 * 0.3989**2) and batch["image"][0, 4, 5, 0] == round(255 * 0.3989 * 0.2420)


def test_a_blur_keeps_channels_apart_and_labels_as_they_are():
    image = np.zeros((7, 7, 3), np.uint8)
    image[..., 1] = 200
    (batch,) = Blurred(Pictures(lambda i: {"image": image, "label": 3}, 1, "green"), 1.5).batches([0], 1)
    np.testing.assert_array_equal(batch["image"][0], image)
    assert batch["label"].tolist() == [3] and len(Blurred(Pictures(gray, 5, "grays"), 1.0)) == 5
