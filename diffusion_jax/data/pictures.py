"""Files of pictures: what `--out` writes, what `--images` reads, and what a file says of itself.

    x.png     one picture or a grid; text chunks, of which `diffusion_jax` holds JSON
    x.npz     arr_0 uint8 [N, H, W, C], arr_1 [N] the labels, meta the same JSON as a string
    x/        000000.png, or 000000_rose.png of class rose, and samples.jsonl, a line of JSON for each
    x.gif     frames, and x.mp4 where ffmpeg is there: data/animation.py

Files appear whole or not at all: each is written beside its place under a dotted name, which every
reader here skips, and then takes that place. The JSON is input from elsewhere when it is read back:
it is parsed, never run, and its size is bounded.
"""
from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffusion_jax.build import ConfigError
from diffusion_jax.data.arrays import SUFFIXES
from diffusion_jax.data.folder import images_in
from diffusion_jax.data.image import opaque, opened, read, to_channels, to_pillow
from diffusion_jax.data.source import class_indices, existing, header, npz, readable
from diffusion_jax.files import json_object, whole

CHUNK = "diffusion_jax"
"""The PNG text chunk that `read_meta` reads; A1111's own is called 'parameters'."""
LISTING = "samples.jsonl"
META_LIMIT = 2**20
"""Characters of JSON that a file may hold about itself; Pillow unpacks no longer text either."""
STILLS = (".png", ".npz")
ANIMATIONS = (".gif", ".mp4")
A1111 = dict(steps="Steps", sampler="Sampler", guidance="CFG scale", seed="Seed", size="Size")
"""What the form `parameters` calls our settings, in its order."""


def checked_out(out: str, animated: bool = False) -> str:
    """The path of an `--out` with ~ expanded; its end says what to write, so a trailing / stays.

    Args:
      out: ends in .png, .npz or /.
      animated: also take .gif and .mp4.

    Raises:
      ConfigError: another end.
    """
    path = os.path.expanduser(out)
    suffixes = STILLS + ANIMATIONS if animated else STILLS
    if path.endswith("/") or Path(path).suffix in suffixes:
        return path
    more = ", .gif or .mp4 (an animation)" if animated else ""
    files = f".png (a grid), .npz (arr_0, arr_1){more}"
    raise ConfigError(f"--out {out}: end it in {files} or / (a folder of PNGs)")


def grid(images: np.ndarray, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """uint8 [N, H, W, C] -> one uint8 image, row by row, with white lines of `gap` pixels between.

    It is about square where `columns` is not given.
    """
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    # Each cell has its line at the right and below; that of the last ones is cut off at the end.
    cells = np.full((rows * columns, height + gap, width + gap, channels), 255, np.uint8)
    cells[:count, :height, :width] = images
    sheet = cells.reshape(rows, columns, height + gap, width + gap, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * (height + gap), columns * (width + gap), channels)
    return sheet[:sheet.shape[0] - gap, :sheet.shape[1] - gap]


def save_png(path: str | Path, image: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Writes a PNG; makes its folder if there is none.

    Args:
      path: the file.
      image: uint8 [h, w], [h, w, 1], [h, w, 3] or [h, w, 4].
      text: text chunks by keyword, tEXt where latin-1 has all characters and else iTXt (UTF-8).

    Raises:
      TypeError: not uint8.
    """
    _check_uint8(image, "save_png")
    chunks = PngInfo()
    for keyword, value in (text or {}).items():
        # A prompt from a command line in another encoding has lone surrogates, which UTF-8 refuses.
        chunks.add_text(keyword, value.encode("utf-8", "backslashreplace").decode("utf-8"))
    with whole(path) as unfinished:
        picture = to_pillow(image if image.ndim == 3 else image[..., None])
        picture.save(unfinished, format="PNG", pnginfo=chunks)


def save_npz(
    path: str | Path,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    meta: Mapping[str, Any] | None = None,
    **arrays: Any,
) -> None:
    """Writes the .npz that evaluators read (ADM's form); makes its folder if there is none.

    Args:
      path: the file.
      images: uint8 [N, H, W, C], which become arr_0.
      labels: integers [N], which become arr_1.
      meta: how they were made, for `read_meta`.
      **arrays: further arrays by name, `prompts` of N strings for example.

    Raises:
      TypeError: the images are not uint8.
    """
    _check_uint8(images, "save_npz")
    arrays = {"arr_0": images} | arrays
    if labels is not None:
        arrays["arr_1"] = labels
    if meta is not None:
        # A string, not an object: nobody has to unpickle to read it.
        arrays["meta"] = np.array(meta_json(meta))
    with whole(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **arrays)


def save_folder(
    folder: str | Path,
    batches: Iterable[np.ndarray],
    labels: np.ndarray | None = None,
    meta: Callable[[int], Mapping[str, Any]] | None = None,
    text: Callable[[int], Mapping[str, str]] | None = None,
    class_of: Callable[[int], str] = str,
) -> int:
    """Writes pictures as they come, a PNG each, and their lines of samples.jsonl.

    Args:
      folder: made if it is not there.
      batches: of uint8 [n, H, W, C].
      labels: integers for all pictures to come; picture 0 of label 3 is then called 000000_3.png.
      meta: of a picture's number, what its line holds beside `file_name` and `label`.
      text: of a picture's number, the text chunks of its PNG.
      class_of: of a label, what stands for it in a file's name.

    Returns:
      How many pictures came.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    with (folder / LISTING).open("w", encoding="utf-8") as listing:
        for batch in batches:
            for image in batch:
                label = {} if labels is None else {"label": int(labels[number])}
                name = "_".join([f"{number:06d}", *map(class_of, label.values())]) + ".png"
                save_png(folder / name, image, text(number) if text else None)
                line = {"file_name": name, **label, **(meta(number) if meta else {})}
                listing.write(meta_json(line) + "\n")
                listing.flush()  # so that what was made before an interruption is listed
                number += 1
    return number


def read_batch(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Images of one size from a file of samples or a folder: what `--out` writes.

    Args:
      path: an .npz with arr_0 uint8 [N, H, W, C] and perhaps labels arr_1 [N], an image file, or a
        folder of them (by name), where what is no image is skipped. A grey image among coloured
        ones is read as a coloured one.

    Returns:
      (uint8 [N, H, W, C], labels or None).

    Raises:
      ConfigError: no such file, no image, or images of several sizes.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise ConfigError(f"there is no {path}: give an .npz, an image or a folder of images")
    if file.suffix == ".npz":
        return _read_npz(file)
    files = images_in(file) if file.is_dir() else [file]
    if not files:
        raise ConfigError(f"{path} holds no images ({', '.join(SUFFIXES)})")
    images = [read(each) for each in files]
    sizes = {image.shape[:2] for image in images}
    if len(sizes) != 1:
        other = next(i for i, image in enumerate(images) if image.shape[:2] != images[0].shape[:2])
        raise ConfigError(
            f"{path} needs images of one size, it has {len(sizes)}: {files[0].name} and "
            f"{files[other].name} differ"
        )
    channels = max(image.shape[-1] for image in images)
    return np.stack([to_channels(image, channels) for image in images]), None


def meta_json(meta: Mapping[str, Any]) -> str:
    """How pictures were made, as one line of JSON in ASCII; arrays become lists.

    Raises:
      ConfigError: more than `META_LIMIT` characters, which `read_meta` would refuse.
    """
    text = json.dumps(meta, default=_listed)
    if len(text) > META_LIMIT:
        long = f"{len(text)} characters about how pictures were made"
        raise ConfigError(f"{long} are more than {META_LIMIT}: shorten the prompts")
    return text


def read_meta(path: str | Path) -> dict[str, Any]:
    """How pictures were made, as it was saved with them.

    Args:
      path: a .png (its chunk `diffusion_jax`), an .npz (its `meta`), or a folder (the first line of
        its samples.jsonl).

    Raises:
      ConfigError: no such file, or it says nothing of the kind, too much, or no JSON object.
    """
    file = existing(path)
    with readable(path):
        if file.is_dir():
            text = _listed_first(file / LISTING)
        elif file.suffix == ".npz":
            text = _npz_text(file)
        else:
            text = _png_text(file)
    ours = "give a .png, an .npz or a folder that this program wrote"
    if text is None:
        raise ConfigError(f"{path} does not say how it was made: {ours}")
    if len(text) > META_LIMIT:
        raise ConfigError(f"{path} says more than {META_LIMIT} characters about itself: {ours}")
    try:
        return json_object(text)
    except ValueError as error:
        about = f"what it says of itself is no JSON object ({error})"
        raise ConfigError(f"{path}: {about}: {ours}") from None


def parameters_text(prompt: str | None, negative: str | None, settings: Mapping[str, Any]) -> str:
    """The chunk `parameters` that AUTOMATIC1111's and other programs show and read back.

    Args:
      prompt: may have several lines; None or '' for a model without text.
      negative: what is guided away from, if anything.
      settings: by our names (`A1111`, which come first) or by theirs; None is left out, and a value
        that would end the setting early (a comma, a colon or a line's end) is quoted as JSON.

    Example:
      >>> print(parameters_text('a cat', 'blurry', {'seed': 7, 'steps': 50, 'guidance': 3.0}))
      a cat
      Negative prompt: blurry
      Steps: 50, CFG scale: 3.0, Seed: 7
    """
    # In A1111's order: other programs know this line by the "Steps:" that it begins with.
    first = [name for name in A1111 if name in settings]
    names = first + [name for name in settings if name not in A1111]
    pairs = [
        f"{A1111.get(name, _title(name))}: {_quoted(settings[name])}"
        for name in names
        if settings[name] is not None
    ]
    guided_away = f"Negative prompt: {negative}" if negative else ""
    lines = [prompt or "", guided_away, ", ".join(pairs)]
    return "\n".join(line for line in lines if line)


def _check_uint8(images: np.ndarray, function: str) -> None:
    if images.dtype != np.uint8:
        raise TypeError(f"{function} wants uint8, got {images.dtype}; use to_uint8")


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with npz(path) as archive:
        images = archive.get("arr_0")
        labels = archive.get("arr_1")
    whole = images is not None and images.ndim == 4 and images.dtype == np.uint8 and images.size
    if images is None or not whole or images.shape[-1] > 4:
        wanted = "an array 'arr_0', uint8 [N, H, W, C], as --out x.npz writes it"
        raise ConfigError(f"{path} needs {wanted}")
    if labels is None:
        return opaque(images), None
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ConfigError(
            f"{path} has {len(images)} images and labels 'arr_1' {labels.dtype} "
            f"{list(labels.shape)}: give an integer for each image, or none"
        )
    return opaque(images), class_indices(labels, None, f"{path}, arr_1")[0]


def _listed(value: Any) -> Any:
    """What JSON does not know: NumPy's and JAX's arrays and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _listed_first(listing: Path) -> str | None:
    """The first line of samples.jsonl, cut where it is too long; None where there is none."""
    if not listing.is_file():
        return None
    with listing.open(encoding="utf-8") as lines:
        return lines.readline(META_LIMIT + 1).strip() or None


def _png_text(path: Path) -> str | None:
    """Our text chunk of a PNG, if it has one; no pixel is decoded."""
    try:
        with opened(path, formats=("PNG",)) as picture:
            text = picture.info.get(CHUNK)
    except (SyntaxError, Image.DecompressionBombError) as error:  # beside ValueError and OSError
        raise ValueError(error) from None
    return text if isinstance(text, str) else None


def _npz_text(path: Path) -> str | None:
    """The string `meta` of an .npz, if it has one; no promise of its header is allocated."""
    with zipfile.ZipFile(path) as archive:
        if "meta.npy" not in archive.namelist():
            return None
        member = archive.getinfo("meta.npy")
        if member.file_size > 4 * META_LIMIT + 4096:  # UTF-32 and a header
            raise ValueError(f"its 'meta' has {member.file_size} bytes")
        content = io.BytesIO(archive.read(member))
    shape, dtype, _ = header(content)
    if shape != () or dtype.kind != "U":
        raise ValueError("its 'meta' is no string")
    return str(np.frombuffer(content.read(), dtype, count=1)[0])


def _title(name: str) -> str:
    """eta -> Eta, clip_skip -> Clip skip; names that begin with a capital stay."""
    spaced = name.replace("_", " ")
    return spaced[:1].upper() + spaced[1:]


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:"\n') else text
