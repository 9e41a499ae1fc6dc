"""Resizers and the input of networks that measure images, against Pillow and closed forms."""
import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.data import resize

IMAGES = np.random.RandomState(0).randint(0, 256, (2, 9, 12, 3), np.uint8)
FLOATS = IMAGES.astype(np.float32)
FILTERS = {"cubic": Image.Resampling.BICUBIC, "linear": Image.Resampling.BILINEAR}


def pillow(image, height, width, method):
    """Each channel of float pixels by Pillow."""
    channels = [Image.fromarray(channel).resize((width, height), FILTERS[method]) for channel in np.moveaxis(image, -1, 0)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def ramp(size):
    return np.broadcast_to(np.arange(size, dtype=np.float32)[None, None, :, None], (1, size, size, 1)).copy()


@pytest.mark.parametrize("method", FILTERS)
@pytest.mark.parametrize("size", [(5, 7), (20, 16), (9, 3)])
def test_the_antialiased_filter_is_pillows(method, size):
    got = jax.jit(lambda x: resize.antialiased(x, *size, method))(FLOATS)
    want = np.stack([pillow(image, *size, method) for image in FLOATS])
    np.testing.assert_allclose(got, want, atol=2e-3)
    if method == "cubic":
        np.testing.assert_allclose(resize.clean(FLOATS, *size), np.clip(want, 0, 255), atol=2e-3)


def test_tensorflow_reads_without_the_half_pixel():
    np.testing.assert_allclose(resize.bilinear_tensorflow(ramp(4), 8, 8)[0, 0, :, 0], [0, 0.5, 1, 1.5, 2, 2.5, 3, 3])
    np.testing.assert_allclose(resize.bilinear_tensorflow(ramp(6), 4, 4)[0, 2, :, 0], [0, 1.5, 3, 4.5])
    np.testing.assert_array_equal(resize.bilinear_tensorflow(FLOATS, 9, 12), FLOATS)


def test_bicubic_keeps_what_a_cubic_filter_keeps():
    np.testing.assert_allclose(resize.bicubic(FLOATS, 9, 12), FLOATS, atol=1e-4)
    inner = resize.bicubic(ramp(8), 16, 16, a=-0.5)[0, 5, 4:-4, 0]             # a = -1/2 is exact on lines
    np.testing.assert_allclose(inner, (np.arange(4, 12) + 0.5) / 2 - 0.5, atol=1e-5)


def test_bicubic_is_pytorchs_filter():
    impulse = np.zeros((1, 1, 5, 1), np.float32)
    impulse[0, 0, 2] = 1
    far, near = np.array([1.75, 1.25]), np.array([0.75, 0.25])                  # from pixels 1 to 4 of 10 to the impulse
    half = np.concatenate([-0.75 * far**3 + 3.75 * far**2 - 6 * far + 3, 1.25 * near**3 - 2.25 * near**2 + 1])
    np.testing.assert_allclose(resize.bicubic(impulse, 1, 10)[0, 0, 1:9, 0], np.concatenate([half, half[::-1]]), atol=1e-6)


@pytest.mark.parametrize("convention, ends", [
    ("tensorflow", (-1, 127 / 128)), ("pytorch_fid", (-1, 1)), ("clean_fid", (-1, 127 / 128)),
])
def test_a_convention_gives_square_images_in_its_range(convention, ends):
    flat = np.stack([np.full((6, 8, 3), value, np.uint8) for value in (0, 255)])
    got = np.asarray(resize.prepare(flat, convention, 5))
    assert got.shape == (2, 5, 5, 3) and got.dtype == np.float32
    np.testing.assert_allclose(got[:, 0, 0, 0], ends, atol=1e-6)
    np.testing.assert_allclose(got, np.broadcast_to(got[:, :1, :1, :1], got.shape), atol=1e-6)


@pytest.mark.parametrize("convention", resize.CONVENTIONS)
def test_an_image_of_the_right_size_is_not_resized(convention):
    square = IMAGES[:, :, :9]
    unit = square / 255 * 2 - 1 if convention == "pytorch_fid" else (FLOATS[:, :, :9] - 128) / 128
    np.testing.assert_allclose(resize.prepare(square, convention, 9), unit, atol=1e-6)


def test_dinov2_sees_normalised_images():
    mean, std = np.array(resize.IMAGENET_MEAN), np.array(resize.IMAGENET_STD)
    host = np.asarray(resize.prepare_dinov2(IMAGES, "pil", 16)) * std + mean
    want = np.stack([np.asarray(Image.fromarray(image).resize((16, 16), FILTERS["cubic"])) for image in IMAGES])
    np.testing.assert_allclose(host * 255, want, atol=1e-3)
    fast = (np.asarray(resize.prepare_dinov2(IMAGES, size=16)) * std + mean) * 255
    np.testing.assert_allclose(fast, np.stack([pillow(image, 16, 16, "cubic") for image in FLOATS]), atol=2e-3)
    assert fast.min() < -1 and fast.max() > 256                                  # not clipped, unlike the other


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="unknown resize convention 'cleanfid': did you mean 'clean_fid'"):
        resize.prepare(IMAGES, "cleanfid")
    with pytest.raises(ConfigError, match="unknown DINOv2 resizer 'pill': did you mean 'pil'"):
        resize.prepare_dinov2(IMAGES, "pill")
