"""Pictures with all that they were made from: written into their files.

    samples.save("cats.png")       a grid
    samples.save("cats.npz")       arrays
    samples.save("cats/")          a PNG each

pipelines/replay.py reads it.
"""
from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data import pictures
from diffusion_jax.data.animation import animate
from diffusion_jax.data.folder import images_in
from diffusion_jax.files import writable
from diffusion_jax.pipelines.lora import listed
from diffusion_jax.pipelines.request import Request
from diffusion_jax.pipelines.sampling import to_pixels
from diffusion_jax.train.checkpoint import versions

PACKAGES = ("diffusion_jax", "jax", "flax")
"""Those whose versions change what a seed makes."""
LONGEST = 50
"""Letters of a class in a file's name, of which systems count the bytes: a letter may have four."""


class Origin(NamedTuple):
    """All that pictures were made from.

    Attributes:
      request: what was asked for.
      num: pictures of each row of the request.
      seed: of the draws.
      batch: pictures at a time.
      recipe: how they were sampled, the fields of a `Recipe` or a `Draw`.
      run: the run's folder, its step, weights and their digest.
      helpers: folders of what helped: classifier, weak, prior, upsamplers, rerank.
      rounding: how they became bytes, nearest or down.
      classes: the names of the run's classes; None where it has none.
      contents: digests of the files of pictures that the request names, by its field; None where
        nobody says.
    """

    request: Request
    num: int
    seed: int
    batch: int
    recipe: Mapping[str, Any]
    run: Mapping[str, Any]
    helpers: Mapping[str, Any]
    rounding: str = "nearest"
    classes: tuple[str, ...] | None = None
    contents: Mapping[str, str] | None = None

    def class_of(self, label: int) -> str:
        """The name of a class, its number where it has none."""
        named = self.classes is not None and 0 <= label < len(self.classes)
        return self.classes[label] if self.classes and named else str(label)

    def file_part(self, label: int) -> str:
        """The same as a part of a file's name: letters and digits, with dashes between them."""
        # A '_' goes too: it parts a picture's number from its class.
        dashed = "".join(one if one.isalnum() else "-" for one in self.class_of(label))
        return re.sub("-+", "-", dashed).strip("-")[:LONGEST] or str(label)


class Samples(NamedTuple):
    """Pictures, and what they were made from.

    Attributes:
      images: uint8 [N, H, W, C].
      origin: what they were made from.
      labels: int [N]; None where there are none.
      prompts: N texts; None where there are none.
    """

    images: np.ndarray
    origin: Origin
    labels: np.ndarray | None = None
    prompts: tuple[str, ...] | None = None

    @property
    def request(self) -> Request:
        """What was asked for."""
        return self.origin.request

    @property
    def recipe(self) -> Mapping[str, Any]:
        """How they were sampled."""
        return self.origin.recipe

    @property
    def seed(self) -> int:
        """Of the draws."""
        return self.origin.seed

    @property
    def run(self) -> Mapping[str, Any]:
        """The run's folder, its step, its weights and their digest."""
        return self.origin.run

    def grid(self) -> np.ndarray:
        """One picture of all, uint8 [h, w, C]: a row for each thing asked for where there are
        several, else about square."""
        return pictures.grid(self.images, columns_of(self.origin))

    def save(self, out: str | Path) -> str:
        """Writes them, with all that they were made from.

        Args:
          out: x.png for a grid, x.npz for arr_0 and arr_1, x/ for a folder of PNGs, x.gif or x.mp4
            for a frame each. A file is written over; a folder that holds pictures is not.

        Returns:
          Where they are.

        Raises:
          ConfigError: another suffix, or what `check_out` refuses.
        """
        target = pictures.checked_out(str(out), animated=True)
        check_out(target)
        if target.endswith("/"):
            save_folder(target, iter([self.images]), self.origin, self.labels, self.prompts)
        elif target.endswith(".npz"):
            texts = {} if self.prompts is None else {"prompts": np.array(self.prompts)}
            meta = meta_of(self.origin, labels=self.labels)
            pictures.save_npz(target, self.images, self.labels, meta, **texts)
        elif target.endswith(".png"):
            pictures.save_png(target, self.grid(), text_of(self.origin, labels=self.labels))
        else:
            animate(target, self.images)
        return target


@dataclass(frozen=True, eq=False)
class Job:
    """Pictures that are about to be made.

    Attributes:
      origin: what they are made from.
      total: how many.
      made: batches in about [-1, 1], or uint8.
      labels, prompts: one for each, or None.
    """

    origin: Origin
    total: int
    made: Iterator[np.ndarray]
    labels: np.ndarray | None
    prompts: tuple[str, ...] | None

    def batches(self) -> Iterator[np.ndarray]:
        """Makes them: uint8 [b, H, W, C], `total` in all; can be called once.

        Raises:
          ConfigError: pictures that are not finite.
        """
        for batch in self.made:
            # Those that a judge chose were rounded before: it saw what is written.
            yield batch if batch.dtype == np.uint8 else to_pixels(batch, self.origin.rounding)

    def rounded(self, rounding: str) -> Job:
        """The same, whose pictures become bytes in another way: nearest or down."""
        return replace(self, origin=self.origin._replace(rounding=rounding))

    def samples(self) -> Samples:
        """Makes them, all in memory; can be called once."""
        images = np.concatenate(list(self.batches()))  # [total, H, W, C]
        return Samples(images, self.origin, self.labels, self.prompts)


def check_out(out: str) -> None:
    """Tries the place of pictures, before they are made.

    Args:
      out: as `pictures.checked_out` returns it.

    Raises:
      ConfigError: it cannot be written, or it is a folder with pictures in it: later readers would
        take those and the new ones for one set.
    """
    folder = Path(out)
    if out.endswith("/") and folder.is_dir():
        others = images_in(folder, deep=True)
        listing = folder / pictures.LISTING
        others += [listing] if listing.exists() else []
        if others:
            first = others[0].relative_to(folder)
            raise ConfigError(
                f"--out {out} holds {len(others)} files of other pictures, {first} for example: "
                "choose another folder"
            )
    writable(out)


def columns_of(origin: Origin) -> int | None:
    """Columns of a grid: the pictures of each thing asked for, where there are several of both;
    None for about square."""
    return origin.num if origin.request.rows > 1 and origin.num > 1 else None


def save_folder(
    folder: str,
    batches: Iterator[np.ndarray],
    origin: Origin,
    labels: np.ndarray | None,
    prompts: tuple[str, ...] | None,
) -> int:
    """Writes batches of uint8 [n, H, W, C] as they come, a PNG each; returns how many there
    were."""
    meta = functools.partial(meta_of, origin, prompts=prompts, labels=labels)
    text = functools.partial(text_of, origin, prompts=prompts, labels=labels)
    return pictures.save_folder(folder, batches, labels, meta, text, origin.file_part)


def contents(request: Request) -> dict[str, str]:
    """Digests of the files of pictures that a request names, by its field; what is not there has
    none."""
    named = {name: getattr(request, name) for name in ("low_res", "complete")}
    paths = {
        name: Path(value).expanduser()
        for name, value in named.items()
        if isinstance(value, (str, Path))
    }
    return {name: _digest(path) for name, path in paths.items() if path.exists()}


def _digest(path: Path) -> str:
    """Of a file, or of the pictures in a folder by name."""
    total = hashlib.sha256()
    for file in images_in(path) if path.is_dir() else [path]:
        total.update(file.read_bytes())
    return total.hexdigest()


def meta_of(
    origin: Origin,
    index: int | None = None,
    prompts: tuple[str, ...] | None = None,
    labels: np.ndarray | None = None,
) -> dict[str, Any]:
    """What a file says of itself, as JSON; with an index that of one picture."""
    request = {field.name: _plain(getattr(origin.request, field.name)) for field in fields(Request)}
    # By identity: label 0 equals False, and is a class.
    request = {
        name: value for name, value in request.items() if value is not None and value is not False
    }
    meta = {
        "request": request,
        "num": origin.num,
        "seed": origin.seed,
        "batch": origin.batch,
        "recipe": dict(origin.recipe),
        "run": dict(origin.run),
        "helpers": dict(origin.helpers),
        "versions": versions(PACKAGES),
    }
    if origin.contents:
        meta["contents"] = dict(origin.contents)
    if origin.rounding != "nearest":
        meta["rounding"] = origin.rounding
    if index is not None:
        meta["index"] = index
        if prompts is not None:
            meta["prompt"] = prompts[index]
    if labels is not None and origin.classes:
        if index is None:
            present = sorted(set(labels.tolist()))
            meta["classes"] = {str(label): origin.class_of(label) for label in present}
        else:
            meta["class"] = origin.class_of(int(labels[index]))
    return meta


def _plain(value: Any) -> Any:
    """A part of a request as JSON; arrays, which a file's text cannot hold, by their shape."""
    if isinstance(value, np.ndarray):
        return {"array": list(value.shape)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def text_of(
    origin: Origin,
    index: int | None = None,
    prompts: tuple[str, ...] | None = None,
    labels: np.ndarray | None = None,
) -> dict[str, str]:
    """The text chunks of a PNG: `parameters` as other programs show it, and our JSON."""
    request = origin.request
    prompt = "\n".join(request.prompts or ())
    if prompts is not None and index is not None:
        prompt = prompts[index]
    label: Any = ", ".join(map(str, request.labels or ()))
    numbers = [] if labels is None or not request.labels else list(dict.fromkeys(labels.tolist()))
    if labels is not None and index is not None:
        label = labels[index]
        numbers = [int(label)]
    # Under our names: data/pictures.py translates those that other programs know.
    settings = {**origin.recipe, "seed": origin.seed, "label": label, "index": index}
    if origin.classes:
        settings["class"] = ", ".join(map(origin.class_of, numbers))
    settings |= {
        "model": Path(origin.run["run"]).name,
        "step": origin.run["step"],
        "weights": origin.run["which"],
        "model hash": f"{origin.run['digest']:08x}",
        "lora": listed(origin.run),
    }
    settings = {name: value for name, value in settings.items() if value not in ("", None)}
    return {
        "parameters": pictures.parameters_text(prompt, request.negative, settings),
        pictures.CHUNK: pictures.meta_json(meta_of(origin, index, prompts, labels)),
    }


def recipe_fields(recipe: Any) -> dict[str, Any]:
    """The fields of a `Recipe` or a `Draw`."""
    return asdict(recipe)
