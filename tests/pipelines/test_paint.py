"""What is sent: masks become rectangles that cover them and nothing else, pictures a model's size."""
import io

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines import paint


def png(array, form="PNG"):
    with io.BytesIO() as file:
        Image.fromarray(array).save(file, format=form)
        return file.getvalue()


@pytest.mark.parametrize("density", [0.02, 0.3, 0.7, 1.0])
def test_rectangles_cover_a_mask_and_nothing_else(density):
    painted = np.random.default_rng(0).random((17, 23)) < density
    painted[3, 4] = True
    count = np.zeros(painted.shape, int)
    for top, left, bottom, right in paint.rectangles(painted):
        count[top:bottom, left:right] += 1
    assert np.array_equal(count, painted.astype(int))


def test_a_block_is_one_rectangle():
    painted = np.zeros((8, 8), bool)
    painted[2:5, 3:7] = True
    assert paint.rectangles(painted) == [[2, 3, 5, 7]]


def test_a_mask_without_paint_is_refused():
    with pytest.raises(ConfigError, match="paint over"):
        paint.rectangles(paint.mask([np.zeros((9, 9, 4), np.uint8)], (3, 3, 1)))


def test_paint_is_found_whatever_the_size_of_its_layer():
    for factor in (1, 4, 7):
        layer = np.zeros((6 * factor, 5 * factor, 4), np.uint8)
        layer[2 * factor : 3 * factor, factor : 4 * factor] = 255
        mask = paint.mask([layer], (6, 5, 3))
        assert mask[2, 1:4].all() and mask.sum() == 3
    assert not paint.mask([], (6, 5, 3)).any()


def test_pictures_are_cropped_to_a_models_size():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255  # the middle is white
    assert paint.cropped(png(wide), (20, 20, 3)).min() > 250
    assert paint.cropped(png(wide), (10, 10, 1)).shape == (10, 10, 1)
    exact = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    assert np.array_equal(paint.cropped(png(exact), (8, 8, 1))[..., 0], exact)


NONE = [b"", b"no picture", b"\x89PNG\r\n\x1a\n"]


@pytest.mark.parametrize("data", NONE, ids=lambda data: ascii(data)[:12])
def test_what_is_no_picture_is_refused_in_a_line(data):
    with pytest.raises(ConfigError) as error:
        paint.cropped(data, (8, 8, 1))
    assert "\n" not in str(error.value)
