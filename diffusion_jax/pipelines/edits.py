"""What a person does to pictures with a pipeline: its edits, `pipe.edit`."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, number, short
from diffusion_jax.pipelines import edit_unclip, latent
from diffusion_jax.pipelines.conditions import conditions_of, one_picture, pictures_of, request_of
from diffusion_jax.pipelines.edit import Change, Inputs, Maker, rectangles
from diffusion_jax.pipelines.edit_steps import edited, inverted, sweep
from diffusion_jax.pipelines.edited import Edited
from diffusion_jax.pipelines.request import (
    Pictures,
    Request,
    check_negative,
    check_numbers,
    check_rects,
)
from diffusion_jax.pipelines.sampling import to_pixels
from diffusion_jax.types import Raw

COUNT = 8
"""Pictures of each value by default."""
SHARE, ANY = (0, 1), (None, None)
RANGES: dict[str, tuple[float | None, float | None]] = {
    "strength": SHARE,
    "switch": (0, None),
    "mix": SHARE,
    "guidance": ANY,
    "phi": ANY,
    "variations": SHARE,
    "interpolate": SHARE,
    "text_diff": SHARE,
    "components": (1, None),
}
"""What each op sweeps over, inclusive."""
COUNTED = ("switch", "components")
"""Ops whose values are whole numbers."""
KEPT = {"variations": "eta", "components": "components"}
"""Edits of embeddings that keep a picture, and what their values are called."""
OWN_NOISE = "the pictures' own noise: leave temperature at 1"


def values_of(op: str, values: Any) -> list[float]:
    """What an op sweeps over, checked; whole numbers as ints.

    Raises:
      ConfigError: no values, or one that is no number or out of the op's range.
    """
    is_list = isinstance(values, (list, tuple, range)) or np.ndim(values) == 1
    several = list(values) if is_list else []
    if not several:
        raise ConfigError(f"op {op} needs values (--values): numbers, separated by commas")
    least, most = RANGES[op]
    for value in several:
        if isinstance(value, str):
            raise ConfigError(f"a value of {op} (--values) is a number, got {short(value)}")
    name = f"a value of {op} (--values)"
    return [number(name, value, least, most, integer=op in COUNTED) for value in several]


def _count(num: int | None, default: int = COUNT) -> int:
    """How many pictures; 0 is no default, and is refused where it is read."""
    return default if num is None else num


class Edits:
    """The edits of a pipeline: `pipe.edit`. Pictures are uint8 arrays [N, H, W, C], files or
    folders.

    Requests are as in a call of the pipeline: a text, a label, a list, a `Request`, or None.

    Example:
      pipe.edit.switch(3, 7, values=[0, 10, 20, 30, 50]).save("switch.png")
    """

    def __init__(self, maker: Maker):
        self._maker = maker.paced()
        self._run = maker.run
        self._recipe = maker.recipe
        self._pace = self._maker.pace
        # Without its first stage, which no sampler reads: `latent` takes the whole model.
        self._model = replace(maker.run.model, first=None)

    def invert(
        self, images: Pictures, request: Any = None, num: int | None = None, seed: int = 0
    ) -> Edited:
        """Up to noise, unguided, and back by DDIM: three rows, the pictures (through the first
        stage), their noise, what comes back; `what` says how well.
        """
        if seed and self._run.task.embedder is None:
            raise ConfigError("op invert draws nothing: leave seed (--seed) at 0")
        if self._recipe.temperature != 1:
            raise ConfigError(f"op invert starts from {OWN_NOISE}")
        # The one sampler that undoes its inversion, and only under the same guidance both ways.
        plain = dict(guidance=1.0, phi=0.0, plus_plus=False, skip="")
        recipe = replace(self._recipe, sampler="ddim", **plain)
        recipe.check(self._run.task)
        image, raw = self._pictures(images, request_of(request, self._run), num, seed)
        x0 = latent.encode(self._run.model, jnp.asarray(image))
        both = (self._model, *recipe.split(), raw)
        x = inverted(*both, x0, self._pace)
        index = jnp.arange(len(image))
        key = jax.random.key(seed)
        back = edited(*both, index, key, Change(), Inputs(x=x), self._pace)
        # Half of the noise, two standard deviations of which then lie within [-1, 1].
        rows = (latent.decode(self._run.model, part) for part in (x0, x / 2, back))
        begin, noise, end = (np.clip(row, -1, 1) for row in rows)
        error = np.abs(end - begin) * 127.5
        what = (
            f"invert: back within {error.mean():.2f} of 255 on average, {error.max():.1f} at most"
        )
        kept = {2: "back"}
        # Of pixels nothing is lost before the first step.
        if self._run.task.autoencoder is not None:
            kept = {0: "through the first stage", **kept}
        return Edited(to_pixels(np.stack([begin, noise, end])), what, to_pixels(image), kept)

    def strength(
        self,
        images: Pictures,
        request: Any = None,
        values: Sequence[float] = (0, 0.25, 0.5, 0.75, 1),
        num: int | None = None,
        seed: int = 0,
    ) -> Edited:
        """(1) at each value, from the picture (0) to one of the condition alone (1)."""
        values_of("strength", values)
        image, raw = self._pictures(images, request_of(request, self._run), num, seed)
        x0 = latent.encode(self._run.model, jnp.asarray(image))
        swept = self._swept("strength", values, raw, seed, Inputs(image=x0))
        kept = {row: f"strength {value}" for row, value in enumerate(values)}
        return swept._replace(originals=to_pixels(image), kept=kept)

    def switch(
        self, first: Any, second: Any, values: Sequence[int], num: int | None = None, seed: int = 0
    ) -> Edited:
        """(3): the first k steps under one request, the rest under another, for each k."""
        steps = len(self._recipe.grid(self._run.task.process)) - 1
        if max(values_of("switch", values)) > steps:
            raise ConfigError(
                f"values of switch (--values) are steps under the first condition, 0 ... {steps}: "
                f"got {max(values)}"
            )
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
        values_of("guidance", values)
        raw = self._conditions(request_of(request, self._run), _count(num), seed, guided=True)
        return self._swept("guidance", values, raw, seed)

    def phi(
        self,
        request: Any = None,
        values: Sequence[float] = (-10, -5, 0, 5, 10),
        num: int | None = None,
        seed: int = 0,
    ) -> Edited:
        """A row for each rescaled phi; the guidance is the recipe's."""
        values_of("phi", values)
        raw = self._conditions(request_of(request, self._run), _count(num), seed)
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
        check_rects(rects)
        before = one_picture(image, shape)
        mask = rectangles(shape, rects)
        after = self.inpainted(before, mask, request_of(request, self._run), strength, seed)
        images = to_pixels(np.stack([before, after]))
        return Edited(images, "inpaint: 2 pictures", images[0], {1: "after"}, {1: mask})

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
        numeric = isinstance(strength, (int, float)) and not isinstance(strength, bool)
        if not numeric or not 0 <= strength <= 1:
            raise ConfigError(f"strength is a share of noise, 0 ... 1: got {short(strength)}")
        if request.rows > 1:
            raise ConfigError("inpainting makes one picture: give one prompt or label (--label)")
        whole = self._run.model
        recipe = self._recipe
        recipe.check(whole.task)
        raw = dict(self._conditions(request, 1, seed))
        if "inpaint" in whole.task.cond.keys:
            raw |= latent.inpaint_condition(whole, image, mask)
        x0 = latent.encode(whole, jnp.asarray(image))  # [1, h, w, c]
        inputs = Inputs(image=x0, mask=latent.is_known(whole, mask))
        change = Change(strength=jnp.float32(strength))
        key = jax.random.key(seed)
        index = jnp.arange(1)
        x = edited(self._model, *recipe.split(), raw, index, key, change, inputs, self._pace)
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
        texts = Request((to_prompt, prompt)).prompts
        return self._of_embeddings("text_diff", images, values, seed, texts=texts)

    def components(
        self, images: Pictures, values: Sequence[float] = (2, 5, 10, 20, 40), seed: int = 0
    ) -> Edited:
        """Of unCLIP's decoder: with so many principal components of the embedding."""
        return self._of_embeddings("components", images, values, seed)

    # How ------------------------------------------------------------------------------------------

    def _conditions(self, request: Request, num: int, seed: int, guided: bool = False) -> Raw:
        """Raw conditions of `num` pictures, or `num` for each prompt; a mask that hides
        everything where the model reads one. With `guided` the edit itself brings guidance."""
        check_numbers(num, seed)
        check_negative(request, guided or self._recipe.guides)
        if request.complete is not None:
            raise ConfigError("complete (--complete) is for a transformer over tokens: use inpaint")
        if self._maker.larger:
            alone = "upsamplers follow edits of unCLIP's embeddings alone"
            raise ConfigError(f"{alone}: open the run with upsamplers=()")
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
        count = _count(num, len(image))
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
        values_of(over, values)
        raw = self._conditions(request_of(first, self._run), _count(num), seed)
        if not raw:
            raise ConfigError(f"op {over} goes from one condition to another: this model has none")
        other = request_of(second, self._run)
        count = len(next(iter(raw.values())))
        if count % other.rows:
            raise ConfigError(
                f"{count} pictures do not divide among {other.rows} second conditions: choose "
                "another num (--num)"
            )
        second = self._conditions(other, count // other.rows, seed)
        same = raw.keys() == second.keys()
        if same and all(np.array_equal(raw[name], second[name]) for name in raw):
            raise ConfigError(
                f"op {over} goes from one condition to another: these are the same, give others"
            )
        return self._swept(over, values, raw, seed, Inputs(second=second))

    def _swept(
        self, over: str, values: Sequence[float], raw: Raw, seed: int, inputs: Inputs = Inputs()
    ) -> Edited:
        """A row for each value of a field of `Change` or `Strengths`, with the same noise."""
        numbers = values_of(over, values)
        whole = self._run.model
        rows = sweep(self._model, self._recipe, raw, seed, over, numbers, inputs, self._pace)
        images = np.stack([np.asarray(latent.decode(whole, row)) for row in rows])
        return Edited(to_pixels(images), f"{over} over {', '.join(map(str, values))}")

    def _of_embeddings(
        self, op: str, images: Pictures, values: Sequence[float], seed: int, **options: Any
    ) -> Edited:
        check_numbers(options.get("num", 1), seed)
        numbers = values_of(op, values)
        if self._recipe.temperature != 1 and op != "components":
            raise ConfigError(f"op {op} starts from {OWN_NOISE}")
        image = pictures_of(images, self._run.task.picture_shape, "images")
        rows = edit_unclip.rows(self._maker, op, image, numbers, seed, **options)
        swept = Edited(to_pixels(np.stack(rows)), f"{op} over {', '.join(map(str, values))}")
        # A text or a second picture leads away from the first, and upsamplers make it another size.
        if op not in KEPT or self._maker.larger:
            return swept
        kept = {row: f"{KEPT[op]} {value}" for row, value in enumerate(numbers)}
        originals = np.repeat(to_pixels(image), options.get("num", 1), axis=0)
        return swept._replace(originals=originals, kept=kept)
