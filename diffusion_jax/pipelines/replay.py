"""Pictures made again: what they were made from is read from their file, and the folders that it
names are opened.

    replay = read_request("cats.png")    what was asked for, and how it was made
    replay.make()                        the same pictures again, bit for bit on the same machine
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.build import ConfigError, short, unknown
from diffusion_jax.data import pictures
from diffusion_jax.pipelines import unclip
from diffusion_jax.pipelines.dalle import Draw
from diffusion_jax.pipelines.lora import again
from diffusion_jax.pipelines.pipeline import Pipeline, upsampler
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.request import MOST, Request, check_numbers, check_whole
from diffusion_jax.pipelines.samples import Origin, Samples, contents
from diffusion_jax.runs.folder import Run, open_run
from diffusion_jax.tasks import kinds

HELPERS = ("classifier", "weak", "rerank", "candidates", "prior", "upsamplers")
"""What `Pipeline.origin` names beside the run."""
OF_FILE = (
    *("request", "num", "seed", "batch", "recipe", "run", "helpers", "rounding"),
    *("versions", "classes", "contents"),
)
OF_PICTURE = ("index", "prompt", "label", "class", "file_name")
"""Keys of what a file says of itself, and, where it has many pictures, of one of them."""


class Replay(NamedTuple):
    """A request that was read from a file of pictures, and how to make them again.

    Attributes:
      origin: what the pictures were made from.
      index: the number of the picture, where the file holds one of many.
    """

    origin: Origin
    index: int | None

    @property
    def request(self) -> Request:
        """What was asked for."""
        return self.origin.request

    @property
    def seed(self) -> int:
        """Of the draws."""
        return self.origin.seed

    def pipeline(self) -> Pipeline:
        """The pipeline that made the pictures, from the folders that they name.

        Raises:
          ConfigError: a folder that is no longer there, or that holds other weights now.
        """
        return reopened(self.origin)

    def make(self) -> Samples:
        """All pictures of that call again.

        Raises:
          ConfigError: what `pipeline` refuses, or a file of pictures that has changed since.
        """
        origin = self.origin
        now = contents(origin.request)
        for name, digest in (origin.contents or {}).items():
            if now.get(name) != digest:
                raise ConfigError(
                    f"{getattr(origin.request, name)} ({name}) holds other pictures than those "
                    "that these were made from, or none: put them back"
                )
        job = self.pipeline().start(origin.request, origin.num, origin.seed, origin.batch)
        return job.rounded(origin.rounding).samples()


def read_request(path: str | Path) -> Replay:
    """What the pictures in a file were made from, with a way to make them again.

    Args:
      path: a PNG, an .npz or a folder that was written by `Samples.save` or by mode `sample`.

    Raises:
      ConfigError: a file that says nothing of that sort, or that was made from an array.

    Example:
      replay = read_request("cats.png")
      replay.request.prompt, replay.seed
      replay.make().save("again.png")
    """
    return Replay(*origin_in(path))


def reopened(origin: Origin) -> Pipeline:
    """The pipeline that made pictures, from the folders that they name.

    Raises:
      ConfigError: a folder that is no longer there, or that holds other weights now; a description
        that makes no sense.
    """
    try:
        return _reopened(origin)
    # A file's text is input from elsewhere: any part of it may be missing or of another type.
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"how these pictures were made does not read ({type(error).__name__}: {error})"
        ) from None


def _reopened(origin: Origin) -> Pipeline:
    helpers = origin.helpers
    for name in helpers:
        if name not in HELPERS:
            raise unknown("helper of pictures", name, HELPERS)
    prior = helpers.get("prior")
    run = _same(origin.run)
    # Built here and not by `pipeline`, which would add what came with the run since: of its page's
    # recipe too nothing is read, for the file names every field.
    return Pipeline(
        run,
        _recipe(run).using(**origin.recipe),
        guide=_same(helpers["classifier"]) if "classifier" in helpers else None,
        weak=_same(helpers["weak"]) if "weak" in helpers else None,
        upsamplers=tuple(_same_upsampler(other) for other in helpers.get("upsamplers", ())),
        prior=None if prior is None else unclip.restored(prior, _same, run),
        judge=_same(helpers["rerank"]) if "rerank" in helpers else None,
        candidates=helpers.get("candidates", 1),
    )


def _recipe(run: Run) -> Recipe | Draw:
    """How a run of this kind samples by default."""
    return Draw() if isinstance(run.task, kinds.Tokens) else Recipe()


def _same_upsampler(description: Mapping[str, Any]) -> Pipeline:
    """An upsampler as `Pipeline.origin` describes it."""
    pipe = upsampler(_same(description["run"]))
    return replace(pipe, recipe=pipe.recipe.using(**description["recipe"]))


def _same(identity: Mapping[str, Any]) -> Run:
    """The run with these weights; `ConfigError` where its folder holds others now."""
    names = {"run": str, "which": str, "step": int, "digest": int}
    for name, kind in names.items():
        if type(identity[name]) is not kind:
            raise TypeError(f"{name} is {short(identity[name])}")
    run = open_run(identity["run"], None, identity["which"], identity["step"])
    # The digest: a run trained anew in the same folder has the same steps.
    if run.digest != identity["digest"]:
        raise ConfigError(
            f"{run.folder} holds other weights at step {run.step} than those that made these "
            "pictures"
        )
    return again(run, identity.get("loras", ()))


def origin_in(path: str | Path) -> tuple[Origin, int | None]:
    """(what the pictures in a file were made from, the number of the picture or None).

    Raises:
      ConfigError: a file that says nothing of that sort.
    """
    meta = pictures.read_meta(path)
    try:
        for name in meta:
            if name not in (*OF_FILE, *OF_PICTURE):
                raise unknown("key", name, (*OF_FILE, *OF_PICTURE))
        asked = dict(meta["request"])
        # An array's shape alone is written: `Request` would refuse it without saying what to do.
        arrays = [name for name, value in asked.items() if _is_array(value)]
        if not arrays:
            request = Request(**{name: _tupled(value) for name, value in asked.items()})
        num, seed, batch = (meta[name] for name in ("num", "seed", "batch"))
        check_numbers(num, seed, batch)
        recipe, run, helpers = (dict(meta[name]) for name in ("recipe", "run", "helpers"))
        index = meta.get("index")
        if index is not None:
            check_whole("index", index, 0, MOST)
        rounding = meta.get("rounding", "nearest")
        if rounding not in ("nearest", "down"):
            raise unknown("rounding", str(rounding), ("nearest", "down"))
        digests = dict(meta.get("contents", {}))
        if not {*digests} <= {"low_res", "complete"}:
            raise unknown("file of pictures", str(next(iter(digests))), ("low_res", "complete"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} says nothing of how it was made that reads: {error}") from None
    if arrays:
        raise ConfigError(
            f"{path} was made from an array, {arrays[0]}, which no file holds: ask again with it"
        )
    return Origin(request, num, seed, batch, recipe, run, helpers, rounding, contents=digests), index


def _is_array(value: Any) -> bool:
    """Whether pictures were made from an array, whose shape `samples.meta_of` writes."""
    return isinstance(value, dict) and value.keys() == {"array"}


def _tupled(value: Any) -> Any:
    """The tuple that JSON wrote as a list; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value
