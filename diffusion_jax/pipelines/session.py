"""What a person does to pictures with a pipeline: its edits (`pipe.edit`), and sessions of them
that can be replayed."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data import pictures
from diffusion_jax.data.image import to_uint8, to_unit
from diffusion_jax.pipelines import edit_unclip, latent
from diffusion_jax.pipelines.conditions import conditions_of, pictures_of
from diffusion_jax.pipelines.edit import Change, Inputs, Maker, edit, invert, rectangles, sweep
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.request import Pictures, Request, check_negative, check_numbers
from diffusion_jax.types import Raw

COUNT = 8
"""Pictures of each value by default."""
OF_REQUEST = ("prompt", "label", "negative", "truncate")
OF_EDIT = ("strength", "seed")
"""Fields of an edit in a session's file, beside rect; all others are of `Recipe`."""


class Edited(NamedTuple):
    """Rows of edited pictures.

    Attributes:
      images: uint8 [rows, N, H, W, C].
      what: the edit, as a line of text for people.
    """

    images: np.ndarray
    what: str

    def grid(self) -> np.ndarray:
        """One picture, uint8 [h, w, C]: a row for each value."""
        return pictures.grid(self.images.reshape(-1, *self.images.shape[2:]), self.images.shape[1])

    def save(self, out: str | Path) -> list[Path]:
        """Writes the grid and, where there are several rows, an animation with a frame for each;
        returns the files.

        Args:
          out: a file name, whose suffix is replaced: x.png, x.gif and, with imageio-ffmpeg, x.mp4.
        """
        path = Path(out).expanduser().with_suffix(".png")
        pictures.save_png(path, self.grid())
        if len(self.images) == 1:
            return [path]
        frames = np.stack([pictures.grid(row) for row in self.images])  # [rows, h, w, C]
        return [path, *pictures.animated(path, frames)]


class Edits:
    """The edits of a pipeline: `pipe.edit`. Pictures are uint8 arrays [N, H, W, C], files or
    folders.

    Requests are as in a call of the pipeline: a text, a label, a list, a `Request`, or None.

    Example:
      >>> pipe.edit.switch(3, 7, values=[0, 10, 20, 30, 50]).save("switch.png")
    """

    def __init__(self, maker: Maker):
        self._maker = maker
        self._run = maker.run
        self._recipe = maker.recipe
        # Without its first stage, which no sampler reads: `latent` takes the whole model.
        self._model = replace(maker.run.model, first=None)

    def invert(
        self, images: Pictures, request: Any = None, num: int | None = None, seed: int = 0
    ) -> Edited:
        """Up to noise, unguided, and back by DDIM: three rows, the pictures (through the first
        stage), their noise, what comes back; `what` says how well.
        """
        # The one sampler that undoes its inversion, and only under the same guidance both ways.
        recipe = self._checked(
            replace(self._recipe, sampler="ddim", guidance=1.0, phi=0.0, plus_plus=False)
        )
        image, raw = self._pictures(images, Request.of(request), num, seed)
        static, strengths = recipe.split()
        x0 = latent.encode(self._run.model, jnp.asarray(image))
        x = invert(self._model, static, strengths, raw, x0)
        index = jnp.arange(len(image))
        key = jax.random.key(seed)
        back = edit(self._model, static, strengths, raw, index, key, Change(), Inputs(x=x))
        # Half of the noise, two standard deviations of which then lie within [-1, 1].
        rows = (latent.decode(self._run.model, part) for part in (x0, x / 2, back))
        begin, noise, end = (np.clip(row, -1, 1) for row in rows)
        error = np.abs(end - begin) * 127.5
        what = (
            f"invert: back within {error.mean():.2f} of 255 on average, {error.max():.1f} at most"
        )
        return Edited(to_uint8(np.stack([begin, noise, end])), what)

    def strength(
        self,
        images: Pictures,
        request: Any = None,
        values: Sequence[float] = (0, 0.25, 0.5, 0.75, 1),
        num: int | None = None,
        seed: int = 0,
    ) -> Edited:
        """(1) at each value, from the picture (0) to one of the condition alone (1)."""
        image, raw = self._pictures(images, Request.of(request), num, seed)
        x0 = latent.encode(self._run.model, jnp.asarray(image))
        return self._swept("strength", values, raw, seed, Inputs(image=x0))

    def switch(
        self, first: Any, second: Any, values: Sequence[int], num: int | None = None, seed: int = 0
    ) -> Edited:
        """(3): the first k steps under one request, the rest under another, for each k."""
        return self._between("switch", first, second, values, num, seed)

    def mix(
        self,
        first: Any,
        second: Any,
        values: Sequence[float] = (0, 0.25, 0.5, 0.75, 1),
        num: int | None = None,
        seed: int = 0,
    ) -> Edited:
        """(4): between two requests."""
        return self._between("mix", first, second, values, num, seed)

    def guidance(
        self,
        request: Any = None,
        values: Sequence[float] = (-10, -5, 0, 1, 5, 10),
        num: int | None = None,
        seed: int = 0,
    ) -> Edited:
        """A row for each scale of classifier-free guidance."""
        raw = self._conditions(Request.of(request), num or COUNT, seed, guided=True)
        return self._swept("guidance", values, raw, seed)

    def phi(
        self,
        request: Any = None,
        values: Sequence[float] = (-10, -5, 0, 5, 10),
        num: int | None = None,
        seed: int = 0,
    ) -> Edited:
        """A row for each rescaled phi; the guidance is the recipe's."""
        raw = self._conditions(Request.of(request), num or COUNT, seed)
        return self._swept("phi", values, raw, seed)

    def inpaint(
        self,
        image: Pictures,
        rects: Sequence[Sequence[int]],
        request: Any = None,
        strength: float = 1.0,
        seed: int = 0,
    ) -> Edited:
        """(5): a part of one picture made anew; two rows, before and after.

        Args:
          image: the picture.
          rects: what to make anew, (top, left, bottom, right) in pixels each.
          request: what is to be there.
          strength: how much of it is new, 0 ... 1.
          seed: of what is drawn.
        """
        shape = self._run.task.picture_shape
        before = pictures_of(image, shape, "images")[:1]
        mask = rectangles(shape, rects)
        after = self.inpainted(before, mask, Request.of(request), strength, seed)
        return Edited(to_uint8(np.stack([before, after])), "inpaint: 2 pictures")

    def inpainted(
        self,
        image: np.ndarray,
        mask: np.ndarray,
        request: Request,
        strength: float = 1.0,
        seed: int = 0,
    ) -> np.ndarray:
        """(5) of an image [1, H, W, C] in [-1, 1]; mask [1, H, W, 1], 1 where it stays. Outside
        nothing changes."""
        if not isinstance(strength, (int, float)) or not 0 <= strength <= 1:
            raise ConfigError(f"strength is a share of noise, 0 ... 1: got {strength}")
        whole = self._run.model
        recipe = self._checked(self._recipe)
        raw = dict(self._conditions(request, 1, seed))
        if "inpaint" in whole.task.cond.keys:
            raw |= latent.inpaint_condition(whole, image, mask)
        static, strengths = recipe.split()
        x0 = latent.encode(whole, jnp.asarray(image))  # [1, h, w, c]
        inputs = Inputs(image=x0, mask=latent.is_known(whole, mask))
        change = Change(strength=jnp.float32(strength))
        key = jax.random.key(seed)
        x = edit(self._model, static, strengths, raw, jnp.arange(1), key, change, inputs)
        # The picture's own pixels outside: a first stage gives back none of them exactly.
        return np.asarray(mask * image + (1 - mask) * latent.decode(whole, x))

    def variations(
        self, images: Pictures, values: Sequence[float] = (0, 0.5, 1), num: int = 1, seed: int = 0
    ) -> Edited:
        """Of unCLIP's decoder: a row for each eta of DDIM, `num` of each picture; 0 makes the
        picture again."""
        return self._of_embeddings("variations", images, values, seed, num=num)

    def interpolate(
        self, images: Pictures, values: Sequence[float] = (0, 0.25, 0.5, 0.75, 1), seed: int = 0
    ) -> Edited:
        """Of unCLIP's decoder: between the first and the second picture, the second and the
        third ..."""
        return self._of_embeddings("interpolate", images, values, seed)

    def text_diff(
        self,
        images: Pictures,
        prompt: str,
        to_prompt: str,
        values: Sequence[float] = (0, 0.1, 0.2, 0.3),
        seed: int = 0,
    ) -> Edited:
        """Of unCLIP's decoder: from what the pictures show, `prompt`, towards what they are to
        show, `to_prompt`."""
        return self._of_embeddings("text_diff", images, values, seed, texts=(to_prompt, prompt))

    def components(
        self, images: Pictures, values: Sequence[int] = (2, 5, 10, 20, 40), seed: int = 0
    ) -> Edited:
        """Of unCLIP's decoder: with so many principal components of the embedding."""
        return self._of_embeddings("components", images, values, seed)

    # How ------------------------------------------------------------------------------------------

    def _conditions(self, request: Request, num: int, seed: int, guided: bool = False) -> Raw:
        """Raw conditions of `num` pictures, or `num` for each prompt; a mask that hides
        everything where the model reads one. With `guided` the edit itself brings guidance."""
        check_numbers(num, seed)
        check_negative(request, guided or self._recipe.guides)
        run = self._run
        total = num * request.rows
        shape = run.task.picture_shape
        # An inpainting network makes a whole picture where nothing is known of it.
        blank = np.zeros((total, *shape), np.float32)
        mask = np.zeros((total, *shape[:2], 1), np.float32)
        extra: dict[str, Any] = {}
        if "mask" in run.task.cond.keys:
            extra = {"mask": mask, "known": blank}
        if "inpaint" in run.task.cond.keys:
            extra |= latent.inpaint_condition(run.model, blank, mask)
        return conditions_of(run, request, total, seed, prior=self._maker.prior, extra=extra)

    def _pictures(
        self, images: Pictures, request: Request, num: int | None, seed: int
    ) -> tuple[np.ndarray, Raw]:
        """(pictures [N, H, W, C] in [-1, 1], repeated in turn, the conditions of N pictures)."""
        image = pictures_of(images, self._run.task.picture_shape, "images")
        count = num or len(image)
        raw = self._conditions(request, count, seed)
        count *= request.rows
        return image[np.arange(count) % len(image)], raw

    def _between(
        self,
        over: str,
        first: Any,
        second: Any,
        values: Sequence[float],
        num: int | None,
        seed: int,
    ) -> Edited:
        raw = self._conditions(Request.of(first), num or COUNT, seed)
        if not raw:
            raise ConfigError(f"op {over} goes from one condition to another: this model has none")
        other = Request.of(second)
        count = len(next(iter(raw.values())))
        if count % other.rows:
            raise ConfigError(
                f"{count} pictures do not divide among {other.rows} second conditions: choose "
                "another num (--num)"
            )
        second = self._conditions(other, count // other.rows, seed)
        return self._swept(over, values, raw, seed, Inputs(second=second))

    def _swept(
        self, over: str, values: Sequence[float], raw: Raw, seed: int, inputs: Inputs = Inputs()
    ) -> Edited:
        """A row for each value of a field of `Change` or `Strengths`, with the same noise."""
        whole = self._run.model
        rows = sweep(self._model, self._recipe, raw, seed, over, values, inputs)
        images = np.stack([np.asarray(latent.decode(whole, row)) for row in rows])
        return Edited(to_uint8(images), f"{over} over {', '.join(map(str, values))}")

    def _of_embeddings(
        self, op: str, images: Pictures, values: Sequence[float], seed: int, **options: Any
    ) -> Edited:
        check_numbers(options.get("num", 1), seed)
        image = pictures_of(images, self._run.task.picture_shape, "images")
        rows = edit_unclip.rows(self._maker, op, image, values, seed, **options)
        return Edited(to_uint8(np.stack(rows)), f"{op} over {', '.join(map(str, values))}")

    def _checked(self, recipe: Recipe) -> Recipe:
        recipe.check(self._run.task)
        return recipe


def story_in(file: Path) -> dict[str, Any]:
    """What is in a session's file: image, the path of the picture that it starts from, and edits.

    An edit has rect, a list of [top, left, bottom, right], and perhaps prompt or label, negative,
    truncate, seed, strength and fields of `Recipe`.

    Raises:
      ConfigError: it is none.
    """
    try:
        story = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--session {file} does not read as JSON: {error}") from None
    # A file is input from elsewhere: checked is all that neither `Request` nor `Recipe` checks.
    has_parts = (
        isinstance(story, dict)
        and isinstance(story.get("image"), str)
        and isinstance(story.get("edits"), list)
    )
    if not has_parts or not all(_is_edit(fields) for fields in story["edits"]):
        raise ConfigError(
            f"--session {file} is no session: it needs image, a path, and edits, a list of "
            "mappings with rect"
        )
    return story


def _is_edit(fields: Any) -> bool:
    rects = fields.get("rect") if isinstance(fields, dict) else None
    if not isinstance(rects, list):
        return False
    return all(
        isinstance(rect, list) and all(isinstance(side, int) for side in rect) for rect in rects
    )


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


def replayed(pipe: Editor, story: Mapping[str, Any]) -> np.ndarray:
    """Every picture of a session, one after the other, uint8 [1 + edits, H, W, C]; what lies
    outside an edit stays as it is.

    Args:
      pipe: whose recipe each edit's own fields change.
      story: as `story_in` reads it.

    Raises:
      ConfigError: an edit with fields that nobody knows, or what `Edits.inpainted` refuses.
    """
    shape = pipe.picture_shape
    states = [to_uint8(pictures_of(story["image"], shape, "images")[:1])]
    for fields in story["edits"]:
        mask = rectangles(shape, fields["rect"])
        others = ("rect", *OF_REQUEST, *OF_EDIT)
        changes = {name: value for name, value in fields.items() if name not in others}
        edits = pipe.using(**changes).edit
        request = Request(**{name: fields[name] for name in OF_REQUEST if name in fields})
        numbers = {name: fields[name] for name in OF_EDIT if name in fields}
        # From what a person saw, uint8, and not from the floats behind it: an edit that is made
        # alone, from the file of the one before, gives the same.
        after = edits.inpainted(to_unit(states[-1]), mask, request, **numbers)
        states.append(to_uint8(after))
    return np.concatenate(states)
