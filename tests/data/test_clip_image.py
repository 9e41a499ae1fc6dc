"""What CLIP sees of a picture, against Pillow, and what must not matter."""
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.clip_image import prepare_clip

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (30, 45), (50, 20), (8, 13)])
def test_is_the_middle_of_the_picture_that_pillow_scales(height, width):
    picture = RNG.integers(0, 256, (height, width, 3), np.uint8)
    short = min(height, width)
    tall, wide = 16 * height // short, 16 * width // short
    top, left = round((tall - 16) / 2), round((wide - 16) / 2)
    scaled = Image.fromarray(picture).resize((wide, tall), Image.Resampling.BICUBIC).crop((left, top, left + 16, top + 16))
    out = prepare_clip(picture, 16)
    assert out.shape == (16, 16, 3) and out.dtype == np.float32
    np.testing.assert_allclose(out, np.asarray(scaled) / 127.5 - 1, atol=1e-6)


def test_a_square_of_the_right_size_is_only_brought_to_unit_range():
    picture = RNG.integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_allclose(prepare_clip(picture, 8), picture / 127.5 - 1, atol=1e-6)


def test_gray_is_gray_in_colour_and_the_mirror_image_that_of_the_mirrored():
    gray = RNG.integers(0, 256, (12, 20, 1), np.uint8)
    out = prepare_clip(gray, 6)
    np.testing.assert_array_equal(out, prepare_clip(gray.repeat(3, axis=-1), 6))
    np.testing.assert_array_equal(out[:, ::-1], prepare_clip(gray[:, ::-1], 6))             # as much is cut left as right
