"""What the page calls: every function yields a value for each of its outputs, and its errors are the library's lines."""
from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.animation import animated
from diffusion_jax.data.pictures import grid
from diffusion_jax.studio import bounds, html, lab
from diffusion_jax.studio.desk import Desk, Form, filled
from diffusion_jax.studio.device import Device
from diffusion_jax.studio.pictures import Session, captions, form_of, make, painted

SIDE = 384
"""Pixels, about, of a picture that is painted on."""


class Calls:
    """On the runs of a desk."""

    def __init__(self, desk: Desk):
        self.desk, self.device = desk, Device()
        name = next(iter(desk.pipes))
        self.first = filled(name, desk.pipe(name))

    def warm(self) -> None:
        """Compiles what the first picture needs, so that nobody waits for it on an open page."""
        with contextlib.suppress(ConfigError):  # it wants a text, for example
            any(news.images is not None for news in self.device.watched(functools.partial(make, self.desk, self.first)))

    def watched(self, job: Callable[[Any], Any]) -> Iterator[tuple[str, Any]]:
        """(what the stage shows, the result once it is there) of a job."""
        inner = ""
        for news in self.device.watched(job):
            if news.images is not None:
                inner = html.picture(grid(news.images, gap=1), news.images.shape[1])
            words = f"Step {news.done} of {news.total}" if news.done else "Begins (what is new is compiled first)"
            yield "" if news.result is not None else html.stage(words, news.done, news.total, inner), news.result

    def make(self, *values: Any) -> Iterator[Any]:
        """Stage, gallery, pictures that can be edited."""
        for stage, samples in self.watched(functools.partial(make, self.desk, Form(*values))):
            if samples is None:
                yield stage, gr.update(visible=False), gr.skip()
                continue
            with tempfile.TemporaryDirectory() as folder:
                samples.save(f"{folder}/")
                items = list(zip(map(str, sorted(Path(folder).glob("*.png"))), captions(samples), strict=True))
                yield stage, gr.update(value=items, visible=True), samples.images

    def fill(self, data: bytes | None) -> Iterator[Any]:
        """The form that a picture was made from."""
        yield [gr.update(**one) for one in self.desk.shown(form_of(self.desk, data))]

    def run(self, name: str) -> Iterator[Any]:
        """The form of another run, and what is to be seen of edits and experiments."""
        form = self.desk.shown(filled(name, self.desk.pipe(name)))
        tools = (*lab.EDITS, *lab.LAB, "interpolation")  # which takes a second picture
        seen = [gr.update(visible=tool in self.desk.offers[name].tools) for tool in tools]
        yield [*(gr.update(**one) for one in form), *seen, None, None, "Load a picture, or send one from Make."]

    def begin(self, session: Session) -> Any:
        """Session, the picture to paint on, how many edits there are."""
        factor = max(1, SIDE // max(session.now.shape[:2]))
        large = session.now.repeat(factor, 0).repeat(factor, 1).repeat(3 // session.now.shape[-1], 2)  # in colour
        told = f"Edits: {len(session.edits)}. Paint over what is to be made anew, as the form says."
        return session, {"background": large, "layers": [], "composite": large}, told

    def load(self, name: str, data: bytes | None) -> Iterator[Any]:
        """A picture that is sent."""
        yield self.begin(Session((bounds.picture(data, self.desk.pipe(name).picture_shape),)))

    def take(self, images: Any, index: int) -> Iterator[Any]:
        """A picture that was made here."""
        if images is None:
            raise ConfigError("make a picture first")
        yield self.begin(Session((images[min(index or 0, len(images) - 1)],)))

    def undo(self, session: Session | None) -> Iterator[Any]:
        """The session without its last edit."""
        yield self.begin((session or Session()).undone())

    def save(self, session: Session | None) -> Iterator[Any]:
        """The files of a session."""
        with tempfile.TemporaryDirectory() as folder:
            yield gr.update(value=(session or Session()).save(folder), visible=True)

    def paint(self, session: Session | None, editor: Any, strength: float, *values: Any) -> Iterator[Any]:
        """Stage, and the session with what is painted made anew."""
        what = Form(*values), session or Session(), (editor or {}).get("layers"), strength
        for stage, after in self.watched(functools.partial(painted, self.desk, *what)):
            yield (stage, *(gr.skip(),) * 3) if after is None else (stage, *self.begin(after))

    def sheet(self, name: str, value: Any, session: Session | None, second: Any, to: Any, *values: Any) -> Iterator[Any]:
        """Stage, which at last has the sheet of an edit or an experiment; the files of a sweep."""
        form, images = Form(*values), list(session.states[-1:] if session else ())
        shape = self.desk.pipe(form.run).picture_shape
        images += [] if second is None else [bounds.picture(second, shape)]
        to = bounds.text("the other", to) or ""
        for stage, sheet in self.watched(functools.partial(lab.sheet, self.desk, form, name, value, images, to)):
            if sheet is None:
                yield stage, gr.skip()
                continue
            with tempfile.TemporaryDirectory() as folder:
                frames = [row[0] for row in sheet.images if len(row) == 1]
                files = [str(file) for file in animated(Path(folder, f"{name}.gif"), np.stack(frames))] if len(frames) > 1 else []
                yield html.stage("", inner=html.table(sheet, shape[0])), gr.update(value=files or None, visible=bool(files))

    def look(self, names: list[str]) -> Iterator[Any]:
        """The reports of runs."""
        yield html.reports([self.desk.pipe(name).run.folder for name in names or self.desk.pipes])
