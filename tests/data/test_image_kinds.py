"""Every kind of image file that there is: read as its own numbers say, or refused in one line; nothing else looks at it."""
import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.data import image as im
from diffusion_jax.data.clip_image import prepare_clip

DEEP = np.array([[0, 257, 1000, 65535]], np.uint16)
EIGHT = np.round(DEEP / 257)
WHITE = 255


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, depth, colour, row, clear=None):
    """A PNG of one row: its samples as bytes, and perhaps its transparent colour."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0))
    between = b"" if clear is None else chunk(b"tRNS", np.array(clear, ">u2").tobytes())
    return b"\x89PNG\r\n\x1a\n" + header + between + chunk(b"IDAT", zlib.compress(b"\0" + bytes(row))) + chunk(b"IEND", b"")


def two(*values):
    """Samples of 16 bits."""
    return np.array(values, ">u2").tobytes()


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(values, dtype=np.uint8):
    return Image.fromarray(np.array([values], dtype))


def rgb(*pixels):
    return Image.fromarray(np.array([pixels], np.uint8))


def deep(mode, byte_order):
    return Image.frombytes(mode, (4, 1), DEEP.astype(byte_order).tobytes())


def palette(**options):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putdata([0, 1])
    return encoded(picture, **options)


def frames(kind, **options):
    first, second = rgb((10, 20, 30), (10, 20, 30)), rgb((200, 0, 0), (200, 0, 0))
    return encoded(first, kind, save_all=True, append_images=[second], **options)


def turned(picture, kind, **options):
    exif = Image.Exif()
    exif[0x0112] = 3                                                            # by 180 degrees
    return encoded(picture, kind, exif=exif, **options)


ORANGE = (200, 100, 50)
CMYK = Image.frombytes("CMYK", (1, 1), bytes([55, 155, 205, 0]))
YCBCR = rgb(ORANGE).convert("YCbCr")

RIGHT = {
    "grey of 16 bits, one clear": (png(4, 16, 0, two(*DEEP[0]), 1000), [0, 1, WHITE, 255]),
    "grey of 16 bits, beside the clear one": (png(2, 16, 0, two(1001, 1000), 1000), [4, WHITE]),
    "grey of 8 bits, one clear": (png(3, 8, 0, [0, 7, 9], 7), [0, WHITE, 9]),
    "grey of 4 bits, one clear": (png(4, 4, 0, [0x05, 0xF1], 5), [0, WHITE, 255, 17]),
    "grey of 2 bits, one clear": (png(4, 2, 0, [0b00011011], 1), [0, WHITE, 170, 255]),
    "grey of 1 bit, black clear": (png(4, 1, 0, [0b01010000], 0), [WHITE] * 4),
    "grey of 1 bit, white clear": (png(4, 1, 0, [0b01010000], 1), [0, WHITE, 0, WHITE]),
    "grey and alpha of 16 bits": (png(2, 16, 4, two(1028, 65535, 1028, 0)), [4, WHITE]),
    "colour, one clear": (png(2, 8, 2, [1, 2, 3, 4, 5, 6], (1, 2, 3)), [[WHITE] * 3, [4, 5, 6]]),
    "colour of 16 bits": (png(2, 16, 2, two(0, 257, 65535, 2570, 5140, 7710)), [[0, 1, 255], [10, 20, 30]]),
    "colour and alpha of 16 bits": (png(2, 16, 6, two(2570, 5140, 7710, 65535, 1, 2, 3, 0)), [[10, 20, 30], [WHITE] * 3]),
    "TIFF, 16 bits": (encoded(deep("I;16", "<u2"), "TIFF"), EIGHT[0]),
    "TIFF, 16 bits, the other byte first": (encoded(deep("I;16B", ">u2"), "TIFF"), EIGHT[0]),
    "TIFF, 16 bits, white is zero": (encoded(deep("I;16", "<u2"), "TIFF", tiffinfo={262: 0}), np.round((65535 - DEEP) / 257)[0]),
    "TIFF, 8 bits, white is zero": (encoded(grey([0, 9, 255]), "TIFF", tiffinfo={262: 0}), [0, 9, 255]),
    "TIFF, grey and alpha": (encoded(Image.merge("LA", [grey([10, 20]), grey([255, 0])]), "TIFF"), [10, WHITE]),
    "TIFF, CMYK": (encoded(CMYK, "TIFF"), [ORANGE]),
    "TIFF, YCbCr": (encoded(YCBCR, "TIFF"), [ORANGE]),
    "JPEG, CMYK": (encoded(CMYK, "JPEG", quality=100), [ORANGE]),
    "JPEG, several": (frames("MPO", quality=100, subsampling=0), [[10, 20, 30]] * 2),
    "palette, half clear": (palette(transparency=bytes([128, 255])), [[132, 137, 142], [40, 50, 60]]),
    "GIF, one clear": (palette(kind="GIF", transparency=1), [[10, 20, 30], [WHITE] * 3]),
    "1 bit": (encoded(grey([0, 255]).convert("1")), [0, 255]),
    "animated PNG": (frames("PNG"), [[10, 20, 30]] * 2),
    "animated GIF": (frames("GIF"), [[10, 20, 30]] * 2),
    "animated WEBP": (frames("WEBP", lossless=True), [[10, 20, 30]] * 2),
    "several TIFFs": (frames("TIFF"), [[10, 20, 30]] * 2),
    "turned PNG of 16 bits": (turned(deep("I;16", "<u2"), "PNG"), EIGHT[0, ::-1]),
    "turned TIFF": (turned(rgb((1, 2, 3), (4, 5, 6)), "TIFF"), [[4, 5, 6], [1, 2, 3]]),
    "turned WEBP": (turned(rgb((1, 2, 3), (4, 5, 6)), "WEBP", lossless=True), [[4, 5, 6], [1, 2, 3]]),
    "turned and clear": (turned(Image.merge("LA", [grey([10, 20]), grey([255, 0])]), "PNG"), [WHITE, 10]),
    "a profile, which is not applied": (encoded(rgb(ORANGE), icc_profile=b"none"), [ORANGE]),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_a_file_is_read_as_its_numbers_say(tmp_path, kind):
    data, want = RIGHT[kind]
    want = np.array([want])
    want = want if want.ndim == 3 else want[..., None]
    image = im.read(data, "x.png")
    assert image.dtype == np.uint8 and image.shape == want.shape
    np.testing.assert_allclose(image, want, atol=2.01 if kind[:4] in ("JPEG", "TIFF") and want.shape[-1] == 3 else 0.01)
    (tmp_path / "x.png").write_bytes(data)
    np.testing.assert_array_equal(im.read(tmp_path / "x.png"), image)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"
PIXEL = Image.new("RGB", (4, 4))
BITS = "has 32-bit pixels, which may mean any brightness"
REFUSED = {
    "32 bits, small numbers": (encoded(grey([0, 100, 255], np.int32), "TIFF"), BITS),
    "32 bits, numbers of 16": (encoded(grey([0, 1, 65535], np.int32), "TIFF"), BITS),
    "32 bits, below zero": (encoded(grey([-1, 0, 5], np.int32), "TIFF"), BITS),
    "floats within 0 and 1": (encoded(grey([0.0, 0.5, 1.0], np.float32), "TIFF"), BITS),
    "LAB": (encoded(Image.new("LAB", (1, 1)), "TIFF"), "pixels of the kind LAB"),
    "12 bits": (encoded(deep("I;16", "<u2"), "TIFF").replace(struct.pack("<HHIHH", 258, 3, 1, 16, 0),
                                                              struct.pack("<HHIHH", 258, 3, 1, 12, 0)), "x.png"),
    "a clear colour of 16 bits": (png(2, 16, 2, two(1, 2, 3, 4, 5, 6), (1, 2, 3)), "a transparent colour of 16 bits"),
    "EPS": (EPS, "it is no PNG or JPEG"),
    **{kind: (encoded(PIXEL, kind), "it is no PNG or JPEG") for kind in ("PPM", "TGA", "ICO", "PCX", "SGI", "IM", "DDS")},
    "PDF": (b"%PDF-1.4\n", "it is no PNG or JPEG"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is no PNG or JPEG"),
    "no pixels": (png(0, 8, 0, []), "it is no PNG or JPEG"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_whose_numbers_say_nothing_is_refused(tmp_path, monkeypatch, kind):
    data, says = REFUSED[kind]
    monkeypatch.setattr("subprocess.Popen", None)                               # what would start Ghostscript
    (tmp_path / "x.png").write_bytes(data)
    for source in (data, tmp_path / "x.png"):
        with pytest.raises(ConfigError, match=re.escape(says)) as error:
            im.read(source, "x.png")
        assert "x.png" in str(error.value) and "\n" not in str(error.value)


def test_only_the_formats_that_are_meant_are_opened(monkeypatch):
    opened = []
    monkeypatch.setattr(Image, "open", lambda data, mode="r", formats=None: opened.append(formats) or 1 / 0)
    with pytest.raises(ConfigError):
        im.read(b"x", "x.png")
    assert opened == [("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")]


def test_one_place_opens_pictures():
    """Every other `Image.open` would have all of Pillow's decoders behind it."""
    package = Path(im.__file__).parents[1]
    opens = [file for file in package.rglob("*.py") if re.search(r"Image\.open|imread", file.read_text())]
    assert opens == [Path(im.__file__)] and Path(im.__file__).read_text().count("Image.open(") == 1


@pytest.mark.parametrize(("kind", "is_grey"), [
    ("1 bit", True), ("grey of 16 bits, one clear", True), ("TIFF, grey and alpha", True), ("palette, half clear", False),
    ("colour of 16 bits", False), ("animated GIF", False), ("TIFF, CMYK", False),
])
def test_a_header_says_whether_an_image_is_grey(tmp_path, kind, is_grey):
    (tmp_path / "x.png").write_bytes(RIGHT[kind][0])
    assert im.is_grey(tmp_path / "x.png") is is_grey
    assert (im.read(tmp_path / "x.png").shape[-1] == 1) is is_grey


def test_what_does_not_read_is_not_grey(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    assert not im.is_grey(tmp_path / "x.png") and not im.is_grey(tmp_path / "none.png")


@pytest.mark.parametrize("shape", [(1, 65500, 3), (65500, 1, 1), (2, 60000, 3), (3, 40000, 3)])
def test_a_line_is_not_scaled_to_gigabytes(shape):
    line = np.zeros(shape, np.uint8)
    for crop in ("center", "random"):
        with pytest.raises(ConfigError, match="before it is cropped; crop or remove it"):
            im.Decode(256, crop)({"image": line}, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="before it is cropped"):
        prepare_clip(line, 256)
    assert im.Decode(16, "none")({"image": line})["image"].shape == (16, 16, 3)


def test_long_pictures_that_fit_are_still_cropped():
    assert im.Decode(64)({"image": np.zeros((10, 1000, 3), np.uint8)})["image"].shape == (64, 64, 3)


@pytest.mark.parametrize("image", [
    None, [[0]], np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 5), np.uint8), np.zeros((0, 4, 3), np.uint8),
    np.full((4, 4, 1), np.nan), np.zeros((1, 4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint16),
], ids=str)
def test_what_is_no_image_is_not_decoded(image):
    with pytest.raises(ConfigError, match=r"an image is uint8 \[height, width, 1 to 4\]"):
        im.Decode(4)({"image": image})


@pytest.mark.parametrize(("record", "says"), [
    *(({"label": label}, "is no integer within 0") for label in (
        -1, 0.5, 3.0, True, np.float32(1), np.bool_(True), 2**31, "3", None, float("nan"), np.array([1]), np.array([1, 2]))),
    *(({"caption": caption}, "is no text") for caption in (5, None, ["a"], b"a")),
], ids=str)
def test_labels_and_captions_of_a_source_of_the_users_own(record, says):
    with pytest.raises(ConfigError, match=says):
        im.Decode(1)({"image": np.zeros((1, 1, 3), np.uint8), **record})


@pytest.mark.parametrize("label", [3, np.int64(3), np.uint8(3), np.array(3)])
def test_any_integer_is_a_label(label):
    example = im.Decode(1)({"image": np.zeros((1, 1, 3), np.uint8), "label": label})
    assert example["label"] == 3 and example["label"].dtype == np.int32


@pytest.mark.parametrize("size", [0, -1, 2.5, float("nan"), 10**9, True, "x"])
def test_a_size_is_a_number_of_pixels(size):
    with pytest.raises(ConfigError, match="size of Decode"):
        im.Decode(size)
