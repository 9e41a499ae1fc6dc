"""Images at the edge of the program: uint8 [h, w, c] outside, float32 in [-1, 1] inside.

    to_unit(u)  = (2 u - 255) / 255                                                   (1)
    to_uint8(x) = round(clip(127.5 (x + 1), 0, 255))                                  (2)

(1) is u / 127.5 - 1 with one rounding instead of two, so NumPy and XLA agree on each bit and 255 becomes exactly 1.
Down-scaling averages over the area that a pixel covers, so it never aliases. The crops are those of ADM (Dhariwal & Nichol,
arXiv:2105.05233, appendix; used by DiT as well): box-halve while the shorter side is at least twice the aim, bicubic to
the aim, crop.
"""
from __future__ import annotations

import io
import math
import operator
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffusion_jax.build import ConfigError, number, unknown
from diffusion_jax.data.source import LARGEST_LABEL, Record

Resampling = Image.Resampling
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""All that is read, whatever a file's name: Pillow knows more, and one of them (EPS) starts another program."""
GREY = ("1", "L", "LA", "La")
CLEAR = ("LA", "La", "PA", "RGBA", "RGBa")
"""Modes with alpha."""
PLAIN = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr")
PHOTOMETRIC, BITS, WHITE_IS_ZERO = 262, 258, 0
"""Tags of a TIFF, and what the first may say."""
MOST_SCALED = 2**26
"""Pixels that a picture may be scaled to before it is cropped: 16 squares of 2,048."""
LARGEST_SIDE = 2**14
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of a PNG's colour types."""
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""The passes of an interlaced PNG: x, y and the strides of their first pixels."""


def to_unit(image: Any) -> Any:
    """uint8 -> float32 in [-1, 1] by (1); a NumPy or JAX array, which stays one."""
    return (2.0 * image.astype(np.float32) - 255.0) * np.float32(1 / 255)


def to_uint8(x: Any, down: bool = False) -> Any:
    """[-1, 1] -> uint8 by (2), values outside clipped; a NumPy or JAX array of any float type, which stays one.

    ADM's sampler cuts the fraction off where (2) rounds, so that its files are half a grey level darker on average. `down` does
    the same, for figures that are compared with those of its evaluator.
    """
    grey = ((x.astype(np.float32) + 1.0) * 127.5).clip(0, 255)
    return (grey if down else grey.round()).astype(np.uint8)


def opaque(image: np.ndarray) -> np.ndarray:
    """uint8 [..., 2 or 4] with alpha last -> [..., 1 or 3] on white; without alpha as it is."""
    if image.shape[-1] in (1, 3):
        return image
    colour, alpha = image[..., :-1].astype(np.uint32), image[..., -1:].astype(np.uint32)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [h, w, 1 to 4] -> [h, w, channels]: grey is repeated, colour becomes luma (ITU-R 601), alpha goes onto white."""
    image = opaque(image)
    if image.shape[-1] == channels:
        return image
    return np.repeat(image, 3, axis=-1) if channels == 3 else from_pillow(to_pillow(image).convert("L"))


def read(data: bytes | str | Path, name: str | None = None) -> np.ndarray:
    """Reads an image file of `FORMATS`, upright (EXIF), on white where it is transparent; of several frames the first.

    Colour profiles are not applied: numbers are those in the file, as in the published data pipelines.

    Args:
      data: the bytes of the file, or its path.
      name: what error messages call it; the path by default.

    Returns:
      uint8 [h, w, 1] for grey images (16-bit ones rounded to 8), [h, w, 3] for all others; of 16 bits with alpha or colour the
      upper 8.

    Raises:
      ConfigError: it cannot be read, is cut short, is too large to be an honest image, or its numbers do not say how bright
        they are: 32-bit pixels, colours of LAB, a transparent colour of 16 bits.
    """
    name = str(name or (data if not isinstance(data, bytes) else "image"))
    try:
        with opened(data) as picture:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and math.prod(picture.size) > limit:
                raise ConfigError(f"{name}: {picture.width}x{picture.height} pixels are more than {limit}; shrink or remove it")
            if picture.format == "PNG":
                return _from_png(picture, data if isinstance(data, bytes) else Path(data).read_bytes(), name)
            return _eight_bit(picture, name)
    except ConfigError:
        raise
    except Exception as error:  # decoders raise anything at all on corrupt bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{name}: cannot read this image ({reason}); mend or remove it") from error


@contextmanager
def opened(data: bytes | str | Path, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """A Pillow image whose pixels are not yet decoded: the one place that opens any.

    Args:
      data: the bytes of a file, or its path.
      formats: which decoders may look at it.

    Raises:
      ValueError: it is of no such format.
    """
    try:
        picture = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=formats)
    except UnidentifiedImageError:
        raise ValueError(f"it is no {' or '.join(formats)}, or damaged") from None
    with picture:
        yield picture


def is_grey(path: str | Path) -> bool | None:
    """Whether `read` makes one channel of a file; looks at its header alone, and says None where that does not read."""
    try:
        with opened(path) as picture:
            return picture.mode in GREY or picture.mode.startswith("I")
    except Exception:  # decoders raise anything at all; `read` says it, with the file's name
        return None


def _from_png(picture: Image.Image, data: bytes, name: str) -> np.ndarray:
    """A PNG -> uint8 [h, w, 1 or 3], by its own header where Pillow says less."""
    if not _has_all_rows(data):
        raise ConfigError(f"{name}: cannot read this image (it ends before its last row); mend or remove it")
    depth, colour = data[24], data[25]
    clear = picture.info.get("transparency")
    if clear is None or colour not in (0, 2):
        image = _eight_bit(picture, name)
        # Grey with alpha of 16 bits is RGBA in Pillow.
        return image[..., :1] if colour == 4 else image
    if depth == 8:
        return _eight_bit(picture, name)
    if colour == 2:
        raise ConfigError(f"{name}: has a transparent colour of 16 bits; save it with an alpha channel, or without transparency")
    # The transparent grey is one of the file's numbers, which are scaled to 8 bits.
    picture.info.pop("transparency")
    most = 2**depth - 1
    image = _eight_bit(picture, name)
    exact = np.asarray(picture)[..., None] if depth == 16 else (image.astype(np.int64) * most + 127) // 255
    return np.where(exact == clear, np.uint8(255), image)


def _has_all_rows(png: bytes) -> bool:
    """Whether the compressed data of a PNG are those of all rows: where they end early, Pillow makes the rest black."""
    place, packed, found, wanted = 8, zlib.decompressobj(), 0, 0
    while place + 8 <= len(png):
        size, kind = struct.unpack_from(">I4s", png, place)
        body = png[place + 8 : place + 8 + size]
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", body)
            bits = depth * PNG_CHANNELS[colour]
            passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
            sides = ((-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes)
            wanted = sum(h * (1 + (w * bits + 7) // 8) for w, h in sides if w > 0 and h > 0)
        elif kind == b"IDAT" and found < wanted:
            found += len(packed.decompress(packed.unconsumed_tail + body, wanted - found))
        place += 12 + size
    return found >= wanted


def _eight_bit(picture: Image.Image, name: str) -> np.ndarray:
    """Any Pillow mode -> uint8 [h, w, 1 or 3], upright."""
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I;16"):
        return _from_sixteen(picture, name)
    if picture.mode == "I" or picture.mode == "F":
        raise ConfigError(f"{name}: has 32-bit pixels, which may mean any brightness; convert it to 8 or 16 bits")
    if picture.mode not in CLEAR + PLAIN:
        raise ConfigError(f"{name}: has pixels of the kind {picture.mode}; convert it to RGB")
    grey = picture.mode in GREY
    if picture.mode in CLEAR or "transparency" in picture.info:
        return opaque(from_pillow(picture.convert("LA" if grey else "RGBA")))
    return from_pillow(picture.convert("L" if grey else "RGB"))


def _from_sixteen(picture: Image.Image, name: str) -> np.ndarray:
    """Grey of 16 bits -> uint8 [h, w, 1]."""
    tags = getattr(picture, "tag_v2", {})
    if tags.get(BITS, (16,)) != (16,):
        raise ConfigError(f"{name}: has pixels of {tags[BITS][0]} bits; convert it to 8 or 16 bits")
    deep = np.asarray(picture).astype(np.uint32)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:                                    # which Pillow turns round for 8 bits alone
        deep = 65535 - deep
    return ((deep * 255 + 32767) // 65535).astype(np.uint8)[..., None]


def to_pillow(image: np.ndarray) -> Image.Image:
    """uint8 [h, w, c] -> Pillow image."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_pillow(picture: Image.Image) -> np.ndarray:
    """Pillow image -> uint8 [h, w, c]."""
    array = np.asarray(picture)
    return array[..., None] if array.ndim == 2 else array


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [h, w, 1 or 3] -> [height, width, c] without aliasing; the aspect ratio is not kept.

    The mean over boxes where both factors are whole, else Lanczos when a side shrinks and bicubic when none does (Lanczos rings).
    """
    h, w = image.shape[:2]
    if (h, w) == (height, width):
        return image
    if h % height == 0 and w % width == 0:
        area = (h // height) * (w // width)
        total = image.reshape(height, h // height, width, w // width, -1).sum((1, 3), dtype=np.uint32)
        return ((total + area // 2) // area).astype(np.uint8)
    filter_ = Resampling.LANCZOS if height < h or width < w else Resampling.BICUBIC
    return from_pillow(to_pillow(image).resize((width, height), filter_))


def _shorter_side(image: np.ndarray, side: int) -> np.ndarray:
    """ADM's resize: halved by boxes while that leaves the shorter side >= `side`, then bicubic until it is `side`."""
    picture = to_pillow(image)
    while min(picture.size) >= 2 * side:
        picture = picture.resize((picture.width // 2, picture.height // 2), Resampling.BOX)
    scale = side / min(picture.size)
    size = round(picture.width * scale), round(picture.height * scale)
    check_scaled(picture.size, size)
    return from_pillow(picture.resize(size, Resampling.BICUBIC))


def check_scaled(size: tuple[int, int], to: tuple[int, int]) -> None:
    """Refuses to scale a picture of (width, height) to more than `MOST_SCALED` pixels: a line of one row, say; `ConfigError`."""
    if math.prod(to) > MOST_SCALED:
        small, large = (f"{width}x{height}" for width, height in (size, to))
        raise ConfigError(f"a picture of {small} pixels would become one of {large} before it is cropped; crop or remove it")


def center_crop_adm(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [h, w, 1 or 3] -> [size, size, c]: the central square, scaled as ADM does it."""
    image = _shorter_side(image, size)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top:top + size, left:left + size]


def random_crop(image: np.ndarray, size: int, rng: np.random.Generator, least: float = 0.8) -> np.ndarray:
    """uint8 [h, w, 1 or 3] -> [size, size, c]: a random square of ADM.

    The shorter side is scaled to a whole number drawn evenly from size .. ceil(size / least), so the square spans `least` to
    all of it; its place is drawn evenly.
    """
    image = _shorter_side(image, int(rng.integers(size, math.ceil(size / least) + 1)))
    top, left = (int(rng.integers(side - size + 1)) for side in image.shape[:2])
    return image[top:top + size, left:left + size]


def flip(image: np.ndarray) -> np.ndarray:
    """[h, w, c] mirrored left to right."""
    return image[:, ::-1]


def _needed(rng: np.random.Generator | None) -> np.random.Generator:
    if rng is None:
        raise TypeError("Decode with a random crop or flips needs a generator")
    return rng


def _checked(image: Any) -> np.ndarray:
    """The image of a record, if it is uint8 [h, w, 1 to 4]."""
    whole = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3
    if not whole or not image.size or not 1 <= image.shape[-1] <= 4:
        kind = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ConfigError(f"an image is uint8 [height, width, 1 to 4], this one is {kind}: mend the data set")
    return image


def _class_of(label: Any) -> np.int32:
    """The label of a record; `ConfigError` where it is no integer, which would be cut to one, or out of range."""
    try:
        index = -1 if isinstance(label, (bool, np.bool_)) else operator.index(label)
    except TypeError:
        index = -1
    if not 0 <= index <= LARGEST_LABEL:
        raise ConfigError(f"label {str(label)[:40]!r} is no integer within 0 ... {LARGEST_LABEL}: mend the data set")
    return np.int32(index)


@dataclass(frozen=True)
class Decode:
    """From a record to arrays of a fixed shape: a pure function of the record and the generator.

    Attributes:
      size: height and width of the result.
      crop: 'center' (`center_crop_adm`), 'random' (`random_crop`) or 'none' (the whole image, resized to the square).
      flip: mirror every other image, at random.
      channels: 1 or 3.
      tokenizer: text -> int32 [T] (data/words.py, caption_bpe.py, clip_bpe.py, glide_bpe.py); None leaves captions as they are.

    Example:
      >>> Decode(32)({'image': np.zeros((40, 50, 1), np.uint8), 'label': 3})['image'].shape
      (32, 32, 3)
    """

    size: int
    crop: str = "center"
    flip: bool = False
    channels: int = 3
    tokenizer: Callable[..., np.ndarray] | None = None

    def __post_init__(self):
        if self.crop not in ("center", "random", "none"):
            raise unknown("crop", self.crop, ("center", "random", "none"))
        number("size of Decode", self.size, 1, LARGEST_SIDE, integer=True)
        if self.channels not in (1, 3):
            raise ConfigError(f"Decode(channels={self.channels}): channels is 1 or 3")

    @property
    def random(self) -> bool:
        """Whether the generator is used at all."""
        return self.flip or self.crop == "random" or self._spelt_at_random

    @property
    def _spelt_at_random(self) -> bool:
        return bool(getattr(self.tokenizer, "dropout", 0))

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        """'image' uint8 [size, size, channels], 'label' int32 if the record has one, its caption as it is and its 'tokens'.

        Args:
          record: what a source holds.
          rng: needed only where the image is changed at random; a tokenizer with dropout drops nothing without it.

        Raises:
          ConfigError: the record's image is none of 8 bits, or too long and narrow to be cropped; its label is no integer; what
            the tokenizer refuses.
        """
        image = to_channels(_checked(record.get("image")), self.channels)
        if self.crop == "random":
            image = random_crop(image, self.size, _needed(rng))
        elif image.shape[:2] != (self.size, self.size):
            image = center_crop_adm(image, self.size) if self.crop == "center" else resize(image, self.size, self.size)
        if self.flip and _needed(rng).random() < 0.5:
            image = flip(image)
        example: Record = {"image": image}
        if "label" in record:
            example["label"] = _class_of(record["label"])
        if "caption" in record:
            if not isinstance(record["caption"], str):
                raise ConfigError(f"caption {str(record['caption'])[:40]!r} is no text: mend the data set")
            example["caption"] = record["caption"]
            if self.tokenizer is not None:
                spelt = {"rng": rng} if self._spelt_at_random else {}
                example["tokens"] = self.tokenizer(record["caption"], **spelt)
        return example
