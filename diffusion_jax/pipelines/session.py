"""Sessions of edits: a file that names a picture and what was changed in it, step by step.

    {"image": "digit.png", "edits": [{"rect": [[0, 0, 4, 8]], "label": 3, "seed": 5, "steps": 30}]}

A file is input from elsewhere. Every value in it is a text, a number or a list of them that goes to
a field of `Request` or `Recipe`, and is checked there: no part of it is built, and the picture is
read and nothing written.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diffusion_jax.build import ConfigError, number, short, unknown
from diffusion_jax.data.image import to_unit
from diffusion_jax.pipelines.conditions import one_picture
from diffusion_jax.pipelines.edit import rectangles
from diffusion_jax.pipelines.edited import Edited
from diffusion_jax.pipelines.edits import Edits
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.request import SEEDS, SIZES, Request, check_whole
from diffusion_jax.pipelines.sampling import to_pixels

LIMIT = 2**20
"""Bytes of a session's file."""
OF_STORY = ("image", "edits")
OF_REQUEST = ("prompt", "label", "negative", "truncate", *SIZES)
OF_EDIT = ("strength", "seed")
"""Fields of an edit in a session's file, beside rect; all others are of `Recipe`."""
OF_RECIPE = tuple(field.name for field in fields(Recipe))
FORM = "it needs image, a path, and edits, a list of mappings with rect"


def story_in(file: Path) -> dict[str, Any]:
    """What is in a session's file: image, the path of the picture that it starts from, and edits.

    An edit has rect, a list of [top, left, bottom, right], and perhaps prompt or label, negative,
    truncate, seed, strength and fields of `Recipe`.

    Raises:
      ConfigError: it is none; names the file, the edit and the key.
    """
    try:
        if file.stat().st_size > LIMIT:
            raise ValueError(f"more than {LIMIT} bytes")
        story = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--session {file} does not read as JSON: {error}") from None
    with of(f"--session {file}"):
        check_story(story)
    return story


def _refuse(constant: str) -> None:
    # NaN and the infinities, which Python's reader takes and JSON does not have.
    raise ValueError(f"{constant} is no number")


@contextmanager
def of(what: str) -> Iterator[None]:
    """Puts what an error is about before its message."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None


def check_story(story: Any) -> None:
    """Raises ConfigError for what is no session: other keys, or values that no edit can have."""
    if not isinstance(story, dict) or not isinstance(story.get("edits"), list):
        raise ConfigError(f"it is no session: {FORM}")
    for name in story:
        if name not in OF_STORY:
            raise unknown("key of a session", name, OF_STORY)
    image = story.get("image")
    if not isinstance(image, str) or not image:
        raise ConfigError(f"it is no session: {FORM}; image is {short(image)}")
    for place, edit in enumerate(story["edits"], 1):
        with of(f"edit {place}"):
            check_edit(edit)


def check_edit(edit: Any) -> None:
    """Raises ConfigError for an edit with keys that nobody knows, or values of another type or out
    of bounds."""
    if not isinstance(edit, dict) or not _are_rects(edit.get("rect")):
        raise ConfigError(
            "it is no session's: rect is a list of [top, left, bottom, right], whole numbers"
        )
    known = ("rect", *OF_REQUEST, *OF_EDIT, *OF_RECIPE)
    for name in edit:
        if name not in known:
            raise unknown("key of an edit", name, known)
    request_of(edit)
    if isinstance(edit.get("strength", 1), (str, bool)):
        raise ConfigError(f"strength is a number, got {short(edit['strength'])}")
    number("strength", edit.get("strength", 1), 0, 1)
    check_whole("seed", edit.get("seed", 0), 0, SEEDS - 1)
    # What a page says beside them is not known yet: a respacing goes with times that may be its.
    Recipe.of({"times": "respace"} | changes_of(edit))


def _are_rects(rects: Any) -> bool:
    return (
        isinstance(rects, list)
        and len(rects) > 0
        and all(isinstance(rect, list) and len(rect) == 4 for rect in rects)
        and all(type(side) is int for rect in rects for side in rect)
    )


def request_of(edit: Mapping[str, Any]) -> Request:
    """What an edit is to show."""
    return Request(**{name: edit[name] for name in OF_REQUEST if name in edit})


def changes_of(edit: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Recipe` that an edit changes."""
    return {name: value for name, value in edit.items() if name in OF_RECIPE}


class Editor(Protocol):
    """What a session is replayed on: a `Pipeline`."""

    @property
    def edit(self) -> Edits:
        """Its edits."""
        ...

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of its pictures."""
        ...

    def using(self, **changes: Any) -> Editor:
        """The same with other fields of its recipe."""
        ...


def prepared(pipe: Editor, edit: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """An edit of a session, checked: the picture before it, uint8 [1, H, W, C], -> the one after.

    Args:
      pipe: whose recipe the edit's own fields change.
      edit: as in `story_in`.

    Raises:
      ConfigError: what `check_edit`, `Pipeline.using` or `rectangles` refuses.
    """
    check_edit(edit)
    mask = rectangles(pipe.picture_shape, edit["rect"])
    edits = pipe.using(**changes_of(edit)).edit
    numbers = {name: edit[name] for name in OF_EDIT if name in edit}

    def made(before: np.ndarray) -> np.ndarray:
        # From what a person saw, uint8, and not from the floats behind it: an edit that is made
        # alone, from the file of the one before, gives the same.
        return to_pixels(edits.inpainted(to_unit(before), mask, request_of(edit), **numbers))

    return made


def replayed(pipe: Editor, story: Mapping[str, Any]) -> np.ndarray:
    """Every picture of a session, one after the other, uint8 [1 + edits, H, W, C]; what lies
    outside an edit stays as it is.

    Args:
      pipe: whose recipe each edit's own fields change.
      story: as `story_in` reads it.

    Raises:
      ConfigError: what `check_story` and `prepared` refuse, before the first edit is made, or what
        `Edits.inpainted` does; names the edit.
    """
    check_story(story)
    edits = []
    for place, edit in enumerate(story["edits"], 1):
        with of(f"edit {place}"):
            edits.append(prepared(pipe, edit))
    states = [to_pixels(one_picture(story["image"], pipe.picture_shape))]
    for place, make in enumerate(edits, 1):
        with of(f"edit {place}"):
            states.append(make(states[-1]))
    return np.concatenate(states)


def edited(op: str, images: np.ndarray, edits: Sequence[Mapping[str, Any]]) -> Edited:
    """The pictures of a session, a row for each, beside the one that it began with.

    Args:
      op: what made them, for people.
      images: what `replayed` returns, uint8 [1 + E, H, W, C].
      edits: those of the session, E of them.
    """
    kept = {place: f"after edit {place}" for place in range(1, len(images))}
    known = {}
    rects: list[list[int]] = []
    for place, edit in enumerate(edits, 1):
        rects += edit["rect"]
        known[place] = rectangles(images.shape[1:], rects)
    return Edited(images[:, None], f"{op}: {len(images)} pictures", images[:1], kept, known)


def corners(rect: str) -> list[int]:
    """[top, left, bottom, right] of 'top,left,bottom,right'.

    Raises:
      ConfigError: something else than numbers.
    """
    sides = rect.split(",")
    try:
        corners = [int(number("--rect", side, least=0, integer=True)) for side in sides]
    except ConfigError:
        corners = []
    if len(corners) != 4:
        raise ConfigError(
            f"--rect {rect}: give top,left,bottom,right in pixels, 0,0,4,8 for example"
        )
    return corners
