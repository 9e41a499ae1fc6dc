"""What the page calls: every function yields a value for each of its outputs, and its errors are
the library's lines."""
from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from diffusion_jax.build import ConfigError
from diffusion_jax.data.pictures import grid
from diffusion_jax.evaluation import experiments, frames
from diffusion_jax.pipelines.captions import captions
from diffusion_jax.pipelines.edit_steps import steps_of
from diffusion_jax.pipelines.history import History
from diffusion_jax.pipelines.jobs import Counter, Device, Tell, making
from diffusion_jax.pipelines.paint import cropped, mask, rectangles
from diffusion_jax.studio import bounds, html
from diffusion_jax.studio.desk import Desk, Form, changes_of, filled

SIDE = 384
"""Pixels, about, of a picture that is painted on."""
EMPTY = "Load a picture, or send one from Make."


class Calls:
    """On the runs of a desk, which share a device."""

    def __init__(self, desk: Desk, device: Device):
        self.desk = desk
        self.device = device

    def watched(self, job: Callable[[Any], Any]) -> Iterator[tuple[str, Any]]:
        """(what the stage shows, the result once it is there) of a job."""
        inner = ""
        for news in self.device.watched(job):
            if news.images is not None:
                inner = html.picture(grid(news.images, gap=1), news.images.shape[1])
            step = f"Step {news.done} of {news.total}"
            words = step if news.done else "Begins (what is new is compiled first)"
            stage = html.stage(words, news.done, news.total, inner)
            yield "" if news.result is not None else stage, news.result

    def make(self, *values: Any) -> Iterator[Any]:
        """Stage, gallery, pictures that can be edited."""
        for stage, samples in self.watched(making(*self.desk.call_of(Form(*values)))):
            if samples is None:
                yield stage, gr.update(visible=False), gr.skip()
                continue
            with tempfile.TemporaryDirectory() as folder:
                samples.save(f"{folder}/")
                files = map(str, sorted(Path(folder).glob("*.png")))
                items = list(zip(files, captions(samples), strict=True))
                yield stage, gr.update(value=items, visible=True), samples.images

    def fill(self, data: bytes | None) -> Iterator[Any]:
        """The form that a picture was made from."""
        yield [gr.update(**one) for one in self.desk.shown(self.desk.form_of(data))]

    def run(self, name: str) -> Iterator[Any]:
        """The form of another run, and which edits and experiments are to be seen."""
        updates = self.desk.shown(filled(name, self.desk.pipe(name)))
        # The last shows the field of a second picture.
        for tool in (*experiments.EXPERIMENTS, "interpolation"):
            updates.append({"visible": tool in self.desk.tools[name]})
        yield [*(gr.update(**one) for one in updates), None, None, EMPTY]

    def begin(self, history: History) -> Any:
        """History, the picture to paint on, how many edits there are."""
        factor = max(1, SIDE // max(history.now.shape[:2]))
        large = history.now.repeat(factor, 0).repeat(factor, 1)
        large = large.repeat(3 // large.shape[-1], 2)  # in colour, for the brush
        words = f"Edits: {len(history.edits)}. Paint over what is to be made anew."
        return history, {"background": large, "layers": [], "composite": large}, words

    def load(self, name: str, data: bytes | None) -> Iterator[Any]:
        """A picture that is sent."""
        shape = self.desk.pipe(name).picture_shape
        yield self.begin(History((cropped(bounds.file(data), shape),)))

    def take(self, images: Any, index: int) -> Iterator[Any]:
        """A picture that was made here."""
        if images is None:
            raise ConfigError("make a picture first")
        yield self.begin(History((images[min(index or 0, len(images) - 1)],)))

    def undo(self, history: History | None) -> Iterator[Any]:
        """The history without its last edit."""
        yield self.begin((history or History()).undone())

    def save(self, history: History | None) -> Iterator[Any]:
        """The files of a session."""
        with tempfile.TemporaryDirectory() as folder:
            files = (history or History()).save(folder)
            yield gr.update(value=list(map(str, files)), visible=True)

    def paint(self, history: Any, editor: Any, strength: float, *values: Any) -> Iterator[Any]:
        """Stage, and the history with what is painted made anew as the form says."""
        form = Form(*values)
        changed, request, _, seed = self.desk.call_of(form)
        history = history or History()
        bounds.whole("number of edits of a session", len(history.edits) + 1, 1, bounds.EDITS)
        if history.now.shape != changed.picture_shape or "strength" not in self.desk.tools[form.run]:
            raise ConfigError("this run does not edit such a picture: load another one")
        # What is saved names the changes; the run's own recipe is beneath them.
        pipe = self.desk.pipe(form.run)
        edit = {"seed": seed, "strength": strength, **changes_of(pipe, form)}
        painted = mask((editor or {}).get("layers") or (), history.now.shape)
        edit["rect"] = rectangles(painted)
        words = {"prompt": request.prompt, "negative": request.negative}
        words["label"] = (request.labels or (None,))[0]
        edit |= {name: value for name, value in words.items() if value is not None}

        def job(tell: Tell) -> History:
            meter = Counter(tell, steps_of(changed.stages, "inpaint", 1))
            return history.edited(replace(pipe, meter=meter), edit)

        for stage, after in self.watched(job):
            yield (stage, *(self.begin(after) if after else (gr.skip(),) * 3))

    def sheet(
        self, name: str, value: Any, history: Any, second: Any, to: Any, *values: Any
    ) -> Iterator[Any]:
        """Stage, which at last has the sheet of an edit or an experiment; the files of a sweep."""
        form = Form(*values)
        pipe, request, num, seed = self.desk.call_of(form)
        images: list[Any] = [*history.states[-1:]] if history else []
        if second is not None:
            images.append(cropped(bounds.file(second), pipe.picture_shape))
        one = () if value is None else (value,)
        other = bounds.text("the other", to) or ""
        runs = {**self.desk.pipes, form.run: pipe}
        ask = experiments.Ask(request, num, seed, one, images, other, runs)

        def job(tell: Tell) -> experiments.Sheet:
            total = experiments.steps_of_sheet(pipe, name, ask)
            return experiments.sheet(pipe, name, ask, Counter(tell, total))

        for stage, sheet in self.watched(job):
            if sheet is None:
                yield stage, gr.skip()
                continue
            with tempfile.TemporaryDirectory() as folder:
                files = list(map(str, sheet.save(Path(folder, f"{name}.gif"))))
                table = html.table(sheet, pipe.picture_shape[0])
                yield table, gr.update(value=files or None, visible=bool(files))

    def look(self, names: list[str]) -> Iterator[Any]:
        """The reports of runs."""
        runs = [self.desk.pipe(name).run for name in names or self.desk.pipes]
        yield frames.reports([run.folder for run in runs])

    def lineages(self) -> Iterator[Any]:
        """The lineages that the runs are of."""
        yield frames.lineages([pipe.run.folder for pipe in self.desk.pipes.values()])
