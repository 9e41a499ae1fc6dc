"""The image functions against closed forms, `jax.image` and hand-made files."""
import io
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.data import image as im

EVERY = np.arange(256, dtype=np.uint8)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def ramp(height, width):
    """Brightness proportional to the column, one channel."""
    return np.broadcast_to(np.arange(width, dtype=np.uint8)[None, :, None], (height, width, 1)).copy()


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_unit_is_the_formula_and_its_ends_are_exact():
    unit = im.to_unit(EVERY)
    assert unit.dtype == np.float32 and unit[0] == -1 and unit[255] == 1
    np.testing.assert_allclose(unit, np.arange(256) / 127.5 - 1, atol=1e-7)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_unit_and_uint8_are_inverse(array):
    back = im.to_uint8(im.to_unit(array(EVERY)))
    assert back.dtype == np.uint8 and isinstance(back, type(array(EVERY)))
    np.testing.assert_array_equal(back, EVERY)


def test_unit_has_the_same_bits_compiled():
    np.testing.assert_array_equal(jax.jit(im.to_unit)(EVERY), im.to_unit(EVERY))


def test_uint8_clips_and_rounds():
    x = np.array([-7, -1, -0.5, 0.0, 0.5, 1, 1e9], np.float32)
    np.testing.assert_array_equal(im.to_uint8(x), [0, 0, 64, 128, 191, 255, 255])
    np.testing.assert_array_equal(im.to_uint8(jnp.asarray([-1, 0.5, 1], jnp.bfloat16)), [0, 191, 255])


@pytest.mark.parametrize("factors", [(2, 2), (4, 4), (3, 5), (8, 1)])
def test_whole_factors_shrink_by_the_area_mean(factors):
    image = noise(8 * factors[0], 6 * factors[1], 3)
    mean = image.reshape(8, factors[0], 6, factors[1], 3).mean((1, 3))
    np.testing.assert_allclose(im.resize(image, 8, 6), mean, atol=0.51)


@pytest.mark.parametrize("size", [(7, 9), (10, 20), (13, 16)])
def test_shrinking_does_not_alias(size):
    stripes = np.zeros((40, 40, 1), np.uint8)
    stripes[:, ::2] = 255  # the highest frequency there is: grey is the only right answer
    inner = im.resize(stripes, *size)[1:-1, 1:-1].astype(int)
    assert abs(inner - 127.5).max() < 16


def test_growing_keeps_a_ramp():
    grown = im.resize(ramp(8, 100), 8, 250)[:, 10:-10, 0]
    np.testing.assert_allclose(grown[0], ((np.arange(250) + 0.5) * 0.4 - 0.5)[10:-10], atol=0.51)


def halved(image):
    """The mean of pairs of columns, then of pairs of rows, each to 8 bits."""
    image = np.floor(image.astype(float).reshape(len(image), -1, 2, image.shape[2]).mean(2) + 0.5)
    return np.floor(image.reshape(-1, 2, *image.shape[1:]).mean(1) + 0.5)


def test_adm_crop_of_powers_of_two_is_a_mean_and_a_cut():
    image = noise(64, 104, 3)
    np.testing.assert_allclose(im.center_crop_adm(image, 16), halved(halved(image))[:, 5:21], atol=1)


@pytest.mark.parametrize(("height", "width", "size"), [
    (50, 61, 32), (61, 50, 32), (90, 33, 32), (20, 31, 32), (100, 132, 32), (264, 300, 48),
])
def test_adm_crop_is_box_halving_then_bicubic(height, width, size):
    image = whole = 64 + noise(height, width, 3) // 2  # so that nothing is clipped between Pillow's two passes
    while min(whole.shape[:2]) >= 2 * size:
        whole = halved(whole)
    scale = size / min(whole.shape[:2])
    to = (round(whole.shape[0] * scale), round(whole.shape[1] * scale), 3)
    whole = np.asarray(jax.image.resize(whole.astype(np.float32), to, "cubic"))
    top, left = (to[0] - size) // 2, (to[1] - size) // 2
    error = im.center_crop_adm(image, size) - whole[top:top + size, left:left + size]
    assert abs(error).max() < 1.2 and error.std() < 0.5  # two roundings of variance 1/12 each, the first spread by the kernel


def test_random_crop_covers_its_range_and_nothing_else():
    image = np.stack(np.meshgrid(np.arange(120), np.arange(160), indexing="ij"), -1)[..., ::-1].astype(np.uint8)
    image = np.concatenate([image, image[..., :1] * 0], -1)  # red = column, green = row
    rng = np.random.default_rng(0)
    crops = np.stack([im.random_crop(image, 32, rng) for _ in range(300)]).astype(float)
    assert crops.shape == (300, 32, 32, 3)
    step = (crops[:, 16, 28, 0] - crops[:, 16, 4, 0]) / 24  # source pixels per pixel: 120/40 .. 120/32
    assert 2.9 < step.min() < 3.15 and 3.6 < step.max() < 3.85
    middle = crops[:, 16, 16, 0]
    assert middle.min() < 60 < 100 < middle.max()
    assert crops[..., 1].max() <= 119 and crops[..., 0].max() <= 159


def test_flip_mirrors_left_and_right():
    np.testing.assert_array_equal(im.flip(ramp(2, 5))[0, :, 0], [4, 3, 2, 1, 0])


def test_channels():
    grey, colour = noise(4, 5, 1), noise(4, 5, 3)
    np.testing.assert_array_equal(im.to_channels(grey, 3), np.concatenate([grey] * 3, -1))
    np.testing.assert_allclose(im.to_channels(colour, 1)[..., 0], colour @ [0.299, 0.587, 0.114], atol=1)
    assert im.to_channels(grey, 1) is grey and im.to_channels(colour, 3) is colour


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_goes_onto_white(channels):
    image = noise(16, 16, channels)
    alpha = image[..., -1:] / 255
    np.testing.assert_allclose(im.opaque(image), image[..., :-1] * alpha + 255 * (1 - alpha), atol=0.51)


# What each file must read as, on the same 6x4 pixels.
GREY, RGB, ALPHA = noise(6, 4, 1), noise(6, 4, 3), noise(6, 4, 4)
ON_WHITE = np.round(ALPHA[..., :3] * (ALPHA[..., 3:] / 255) + 255 - ALPHA[..., 3:].astype(float))
DEEP = np.random.default_rng(1).integers(0, 65536, (6, 4), dtype=np.uint16)
PALETTE = Image.fromarray(RGB).quantize(24)
SEEN = Image.new("P", (2, 1))
SEEN.putpalette([10, 20, 30, 40, 50, 60])
SEEN.putdata([0, 1])


@pytest.mark.parametrize(("data", "want"), [
    (encoded(Image.fromarray(GREY[..., 0])), GREY),
    (encoded(Image.fromarray(RGB)), RGB),
    (encoded(Image.fromarray(ALPHA)), ON_WHITE),
    (encoded(Image.merge("LA", [Image.fromarray(ALPHA[..., c]) for c in (0, 3)])),
     ON_WHITE[..., :1]),
    (encoded(Image.fromarray(DEEP)), np.round(DEEP[..., None] / 257)),
    (encoded(Image.fromarray(DEEP), "TIFF"), np.round(DEEP[..., None] / 257)),
    (encoded(Image.fromarray(GREY[..., 0] > 127)), (GREY > 127) * 255),
    (encoded(PALETTE), np.asarray(PALETTE.convert("RGB"))),
    (encoded(SEEN, transparency=1), np.array([[[10, 20, 30], [255, 255, 255]]])),
    (encoded(Image.fromarray(RGB).convert("CMYK"), "TIFF"), RGB),
    (encoded(Image.fromarray(RGB), "WEBP", lossless=True), RGB),
], ids=["grey", "rgb", "rgba", "grey-alpha", "16-bit-png", "16-bit-tiff", "1-bit", "palette", "palette-alpha", "cmyk", "webp"])
def test_read_every_kind(data, want):
    image = im.read(data)
    assert image.dtype == np.uint8 and image.shape == want.shape
    np.testing.assert_allclose(image, want, atol=0.51)


@pytest.mark.parametrize(("orientation", "upright"), [
    (1, lambda x: x), (2, np.fliplr), (3, lambda x: np.rot90(x, 2)), (4, np.flipud),
    (5, lambda x: x.transpose(1, 0, 2)), (6, lambda x: np.rot90(x, -1)), (7, lambda x: np.rot90(x.transpose(1, 0, 2), 2)),
    (8, np.rot90),
])
def test_exif_orientation_is_applied(orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(im.read(encoded(Image.fromarray(RGB), exif=exif)), upright(RGB))


def bomb():
    """A PNG whose header promises 20,000 x 20,000 pixels."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def broken(data, at):
    return data[:at] + bytes(255 - byte for byte in data[at:at + 40]) + data[at + 40:]


BIG = Image.fromarray(noise(64, 64, 3))


@pytest.mark.parametrize("data", [
    b"", b"not an image", encoded(BIG)[:2000], encoded(BIG, "JPEG")[:900], broken(encoded(BIG), 30), broken(encoded(BIG), 1000),
    bomb(), encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
    encoded(Image.fromarray(np.full((4, 4), -1, np.int32)), "TIFF"),
], ids=["empty", "text", "cut-png", "cut-jpeg", "bad-header", "bad-data", "bomb", "float", "int32"])
def test_bad_images_are_named(tmp_path, data):
    with pytest.raises(ConfigError, match=r"pets/7\.png") as error:
        im.read(data, "pets/7.png")
    assert "\n" not in str(error.value)
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(ConfigError, match=r"x\.png"):
        im.read(tmp_path / "x.png")


def test_a_moderately_large_image_is_refused_too(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # 64 * 64 is over it, yet below Pillow's own error at twice that
    with pytest.raises(ConfigError, match="64x64"), pytest.warns(Image.DecompressionBombWarning):
        im.read(encoded(BIG), "large.png")


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.png"):
        im.read("nowhere.png")


@pytest.mark.parametrize("crop", ["center", "random", "none"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(32, 32, 1), (40, 70, 3), (9, 7, 3)])
def test_decode_has_one_shape(crop, channels, shape):
    decode = im.Decode(32, crop, flip=True, channels=channels)
    example = decode({"image": noise(*shape), "label": 3, "caption": "a cat"}, np.random.default_rng(0))
    assert example["image"].shape == (32, 32, channels) and example["image"].dtype == np.uint8
    assert example["label"] == 3 and example["label"].dtype == np.int32 and example["caption"] == "a cat"


def test_decode_leaves_alone_what_fits():
    image = noise(16, 16, 3)
    for crop in ("center", "none"):
        assert im.Decode(16, crop)({"image": image})["image"] is image
    assert set(im.Decode(16)({"image": image})) == {"image"}


def test_none_resizes_the_whole_image():
    image = noise(32, 64, 3)
    np.testing.assert_array_equal(im.Decode(16, "none")({"image": image})["image"], im.resize(image, 16, 16))


def test_decode_is_pure_and_flips_every_other_image():
    image, decode = ramp(8, 8), im.Decode(8, flip=True, channels=1)
    rng = np.random.default_rng(0)
    flipped = [bool(decode({"image": image}, rng)["image"][0, 0, 0]) for _ in range(400)]
    assert 160 < sum(flipped) < 240  # 4 sigma
    once, again = (decode({"image": image}, np.random.default_rng(5))["image"] for _ in range(2))
    np.testing.assert_array_equal(once, again)
    with pytest.raises(TypeError, match="generator"):
        decode({"image": image})
    assert decode.random and im.Decode(8, "random").random and not im.Decode(8).random


@pytest.mark.parametrize(("options", "message"), [
    ((8, "centre"), "'center'"), ((8, "none", False, 4), "channels"), ((0,), "size"),
])
def test_decode_refuses(options, message):
    with pytest.raises(ConfigError, match=message):
        im.Decode(*options)
