"""Pictures of a form as they arise, forms of pictures that were made before, and a picture that is changed again and again."""
from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.pictures import save_png
from diffusion_jax.pipelines import cascade
from diffusion_jax.pipelines.edit_steps import steps_of
from diffusion_jax.pipelines.replay import read_request
from diffusion_jax.pipelines.samples import Samples
from diffusion_jax.pipelines.session import prepared
from diffusion_jax.studio import bounds
from diffusion_jax.studio.desk import SAMPLING, Desk, Form, changes_of, filled
from diffusion_jax.studio.device import Counter, News, Tell


def make(desk: Desk, form: Form, tell: Tell) -> Samples:
    """The pictures that a form asks for; tells uint8 [N, H, W, C] as they stand, where one model makes them in steps."""
    pipe, request, num, seed = desk.asked(form)
    if pipe.makes_tokens:
        return pipe(request, num, seed)
    total = cascade.steps_of(pipe.stages, 1, 1)
    if pipe.upsamplers or pipe.run.task.embedder is not None:
        return replace(pipe, meter=Counter(tell, total))(request, num, seed)
    job = pipe.start(request, num, seed)
    for step, images in pipe.stream(request, num, seed, every=max(1, total // 10)):
        tell(News(step, total, images))
    return Samples(images, job.origin, job.labels, job.prompts)


def captions(samples: Samples) -> list[str]:
    """What stands under each picture: its request."""
    origin = samples.origin
    how = ", ".join(f"{name} {origin.recipe[name]}" for name in ("steps", "guidance", "sampler") if name in origin.recipe)
    of = samples.prompts or ["" if samples.labels is None else origin.class_of(int(label)) for label in samples.labels]
    return [f"{what} · seed {origin.seed}, picture {index} · {how}".lstrip(" ·") for index, what in enumerate(of)]


def form_of(desk: Desk, data: bytes | None) -> Form:
    """The form that a PNG was made from; `ConfigError` for a file that does not say so, or that names a run which is not open."""
    with tempfile.NamedTemporaryFile(suffix=".png") as copy:
        copy.write(bounds.file(data))
        copy.flush()
        try:
            origin = read_request(copy.name).origin
        except ConfigError as error:
            raise ConfigError(str(error).replace(copy.name, "this picture")) from None
    name, request = desk.name_of(origin.run.get("run")), origin.request
    recipe = desk.pipe(name).recipe.using(**{key: value for key, value in origin.recipe.items() if key in (*SAMPLING, "cads")})
    names = desk.pipe(name).run.class_names or ()
    classes = [names[label] if isinstance(label, int) and label < len(names) else str(label) for label in request.labels or ()]
    words = dict(classes=classes, prompt="\n".join(request.prompts or ()), negative=request.negative or "")
    return filled(name, replace(desk.pipe(name), recipe=recipe), num=min(origin.num, bounds.PICTURES), seed=origin.seed, **words)


class Session(NamedTuple):
    """States of a picture, uint8 [H, W, C], the first as it was loaded, one more for each edit (pipelines/session.py)."""

    states: tuple[np.ndarray, ...] = ()
    edits: tuple[Mapping[str, Any], ...] = ()

    @property
    def now(self) -> np.ndarray:
        """The newest state; `ConfigError` without one."""
        if not self.states:
            raise ConfigError("load a picture, or send one from Make")
        return self.states[-1]

    def undone(self) -> Session:
        """Without the last edit, if there is one."""
        return Session(self.states[:-1], self.edits[:-1]) if self.edits else self

    def save(self, folder: str) -> list[str]:
        """Writes start.png and session.json, which `--mode edit --op replay --session session.json` reads in their folder."""
        start, file = Path(folder, "start.png"), Path(folder, "session.json")
        save_png(start, self.states[0] if self.states else self.now)
        file.write_text(json.dumps({"image": start.name, "edits": self.edits}, indent=2) + "\n", encoding="utf-8")
        return [str(start), str(file)]


def painted(desk: Desk, form: Form, session: Session, layers: Any, strength: float, tell: Tell) -> Session:
    """The session with what layers of paint (`bounds.mask`) lie over made anew as a form asks for."""
    bounds.whole("number of edits of a session", len(session.edits) + 1, 1, bounds.EDITS)
    pipe, request, _, seed = desk.asked(form)
    if session.now.shape != pipe.picture_shape or "strength" not in desk.offers[form.run].tools:
        raise ConfigError("this run does not edit such a picture: load another, or send one from Make")
    edit = {"rect": bounds.rectangles(bounds.mask(layers, session.now.shape)), "seed": seed, "strength": strength}
    words = dict(prompt=request.prompt, negative=request.negative, label=(request.labels or (None,))[0])
    edit |= {name: word for name, word in words.items() if word is not None} | changes_of(desk.pipe(form.run), form)
    meter = Counter(tell, steps_of(pipe.stages[:1], "inpaint", 1))
    after = prepared(replace(desk.pipe(form.run), upsamplers=(), meter=meter), edit)(session.now[None])[0]
    return Session((*session.states, after), (*session.edits, edit))
