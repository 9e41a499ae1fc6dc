"""Mode `edit`: pictures changed, and conditions changed half-way, by a trained diffusion model. --op says how:

    invert      --images x.png                                     up to noise and back; says how well
    strength    --images x.png --values 0,0.25,0.5,0.75,1          from the picture (0) to one of the condition alone (1)
    switch      --label 3 --to_label 7 --values 0,10,20,30,50      the first k steps under one condition, the rest under another
    mix         --label 3 --to_label 7 --values 0,0.25,0.5,0.75,1  between two embedded conditions
    guidance    --values -10,-5,0,1,5,10                           scales of classifier-free guidance
    phi         --values -10,-5,0,5,10 --guidance 3                rescaled phi
    inpaint     --images x.png --rect 2,2,6,6 --session s.json     a part made anew; appended to the session
    replay      --session s.json                                   the session from its start

and of unCLIP's decoder variations, interpolate, text_diff and components, see modes/unclip_edit.py.

Conditions are --label or --prompt (and --negative), and --to_label or --to_prompt; without them the classes, or held-out
captions, in turn. A model of latents changes the latents of the pictures.
What is swept is written as a grid, a row for each value, and as an animation with a frame for each: out.png, out.gif, out.mp4.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.data import image as pictures
from diffusion_jax.modes import first_stage, text
from diffusion_jax.modes.sample import stage_of
from diffusion_jax.pipelines.cascade import Stage
from diffusion_jax.pipelines.diffusion import conditions
from diffusion_jax.pipelines.edit import How, edit, invert, rectangles, swept
from diffusion_jax.pipelines.latent import Space
from diffusion_jax.types import Raw

SWEEPS = ("strength", "switch", "mix", "guidance", "phi")
UNCLIP = ("variations", "interpolate", "text_diff", "components")
OPS = ("invert", *SWEEPS, "inpaint", "replay", *UNCLIP)
TAKES = {
    "invert": ("images",), "strength": ("images", "values"), "switch": ("to_label", "to_prompt", "values"),
    "mix": ("to_label", "to_prompt", "values"), "guidance": ("values",), "phi": ("values",),
    "inpaint": ("images", "rect", "session", "strength"), "replay": ("session",), "variations": ("images", "values", "num"),
    "interpolate": ("images", "values"), "text_diff": ("images", "values", "prompt", "to_prompt"),
    "components": ("images", "values"),
}
"""Of the options that not every op looks at."""
INVERTED = ("invert", "variations", "interpolate", "text_diff")
"""They come back by DDIM from the noise that DDIM found."""
SECONDS = 0.4
"""How long a frame is shown."""


def run(config: Any, workdir: str, options: Mapping[str, Any]) -> None:
    """Edits with the newest checkpoint; the folder alone is enough.

    Args:
      config: not needed: the checkpoint carries its own.
      workdir: the run's folder.
      options: op; label, prompt, negative, to_label, to_prompt, images, values, rect, session (see the top of this file); num, of
        each value; truncate; seed, which, step, out (a file name whose suffix is replaced, 'edit.png' in the working folder by
        default), and the fields of `Recipe`.

    Raises:
      ConfigError: an unknown op, what it needs and is not given or does not look at, or what `load` and `conditions` refuse.
    """
    options = dict(options)
    op = options.pop("op", None)
    if op not in OPS:
        raise unknown("op of mode edit", str(op), OPS)
    looked_at(op, options)
    if op in UNCLIP:
        from diffusion_jax.modes import unclip_edit  # which needs this file

        return unclip_edit.run(workdir, op, options)
    out = Path(options.pop("out", Path(workdir, "edit.png")))
    if op in ("inpaint", "replay"):
        images = session(workdir, op, options)
        return written(out, images[:, None], f"{op}: {len(images)} pictures")
    given = {name: options.pop(name, None) for name in ("images", "values", "to_label", "to_prompt", "label", "prompt")}
    num, seed = options.pop("num", None), options.pop("seed", 0)
    how_read = {name: options.pop(name) for name in ("negative", "truncate") if name in options} | {"prior": {"seed": seed}}
    way = {"sampler": "ddim"} if op in INVERTED else {}
    stage = stage_of(workdir, options.pop("which", "ema"), options.pop("step", None), way | options)
    space = Space(stage.task, first_stage.kept(workdir))
    image = None if given["images"] is None else images_at(given["images"], space.shape)
    raw = asked(workdir, space, given["label"], given["prompt"], num or (len(image) if image is not None else 8), **how_read)
    if op in ("invert", "strength") and image is None:
        raise ConfigError(f"op {op} needs --images")
    if image is not None:
        count = len(next(iter(raw.values()))) if raw else num or len(image)
        image = image[np.arange(count) % len(image)]
    if op == "invert":
        return inverted(stage, space, raw, image, seed, out)
    if not given["values"]:
        raise ConfigError(f"op {op} needs --values")
    second = None
    if op in ("switch", "mix"):
        if given["to_label"] is None and given["to_prompt"] is None:
            raise ConfigError(f"op {op} needs --to_label or --to_prompt")
        if not raw:
            raise ConfigError(f"op {op} goes from one condition to another: this model has none")
        second = asked(workdir, space, given["to_label"], given["to_prompt"], len(next(iter(raw.values()))), **how_read)
    values = numbers(given["values"])
    how = How(guidance=stage.recipe.guidance, phi=stage.recipe.phi)
    kept = space.encode(image) if op == "strength" else None
    made = swept(stage.task, stage.params, stage.recipe, raw, seed, how, op, values, second, kept)
    made = np.stack([np.asarray(space.decode(x)) for x in made])
    written(out, pictures.to_uint8(made), f"{op} over {', '.join(map(str, values))}")


def looked_at(op: str, options: Mapping[str, Any]) -> None:
    """Raises ConfigError for an option that an op would not look at."""
    some = set().union(*TAKES.values()) - (set() if op in UNCLIP else {"num", "prompt"})
    for name in options:
        if name in some and name not in TAKES[op]:
            raise ConfigError(f"op {op} takes no --{name}")
        if name in ("classifier_scale", "temperature"):
            raise ConfigError(f"--{name} is for mode sample: leave it out")
    if op in INVERTED and options.get("sampler", "ddim") != "ddim":
        raise ConfigError(f"op {op} comes back the way that DDIM went: leave --sampler out")


def images_at(path: str, shape: tuple[int, int, int]) -> np.ndarray:
    """The pictures of `shape` (H, W, C) in a file or folder: [N, H, W, C] in [-1, 1].

    Raises:
      ConfigError: they have another size than the model's.
    """
    found, _ = pictures.read_batch(path)
    found = np.stack([pictures.to_channels(picture, shape[-1]) for picture in found])
    if found.shape[1:] != shape:
        raise ConfigError(f"--images {path} has pictures of {found.shape[1:]}, this model makes {shape}")
    return pictures.to_unit(found)


def asked(workdir: str, space: Space, label: int | None, prompt: list[str] | None, num: int, **how_read: Any) -> Raw:
    """Raw conditions of `num` pictures, or `num` for each prompt; a mask that hides everything where the model reads one."""
    count = num * len(prompt) if prompt and len(prompt) > 1 else num
    given = dict(text.conditions_of(workdir, space.task, prompt, count, **how_read))
    picture, mask = np.zeros((count, *space.shape), np.float32), np.zeros((count, *space.shape[:2], 1), np.float32)
    if "mask" in space.task.cond.keys:
        given |= {"mask": mask, "known": picture}
    if "inpaint" in space.task.cond.keys:
        given |= space.seen(picture, mask)
    return conditions(space.task, count, label, given)


def numbers(values: list[str]) -> list[float]:
    """The values of a sweep; `ConfigError` for one that is no number."""
    try:
        return [float(value) for value in values]
    except ValueError:
        raise ConfigError(f"--values {','.join(values)}: give numbers, separated by commas") from None


def inverted(stage: Stage, space: Space, raw: Raw, image: np.ndarray, seed: int, out: Path) -> None:
    """Up to noise, unguided, and back; three rows: the pictures (through the first stage), their noise, what comes back."""
    how = How()
    x0 = space.encode(jnp.asarray(image))
    x = invert(stage.task, stage.recipe, stage.params, raw, x0, how)
    index = jnp.arange(len(image))
    back = edit(stage.task, stage.recipe, stage.params, raw, index, jax.random.key(seed), how, False, x=x)
    start, noise, back = (np.clip(space.decode(each), -1, 1) for each in (x0, x / 2, back))
    off = np.abs(back - start) * 127.5
    rows = np.stack([start, noise, back])
    written(out, pictures.to_uint8(rows), f"invert: back within {off.mean():.2f} of 255 on average, {off.max():.1f} at most")


def session(workdir: str, op: str, options: dict[str, Any]) -> np.ndarray:
    """The pictures of an editing session, uint8 [1 + edits, H, W, C]; op 'inpaint' adds an edit to it once that is made.

    A session is a JSON file: image, the path of the picture that it starts from, and edits, each with rect (a list of top,
    left, bottom, right), prompt or label, seed, and the options of sampling.

    Raises:
      ConfigError: what the op needs and is not given, or a file that is no session.
    """
    path, images = options.pop("session", None), options.pop("images", None)
    which, step = options.pop("which", "ema"), options.pop("step", None)
    file = Path(path) if path else None
    if op == "replay" and (file is None or not file.is_file()):
        said = f": there is no {file}" if file else ""
        raise ConfigError(f"op replay needs --session, the JSON file of an editing session{said}")
    story = story_in(file) if file and file.is_file() else {"image": images, "edits": []}
    if story["image"] is None:
        raise ConfigError("op inpaint needs --images, the picture to start from, or a --session that has one")
    if images not in (None, story["image"]):
        raise ConfigError(f"{file} starts from {story['image']}: leave --images out, or begin another --session")
    if op == "replay":
        if options:
            raise ConfigError(f"--{min(options)} is for op inpaint: a session is replayed as it is")
        return replayed(workdir, story, which, step)
    if "rect" not in options:
        raise ConfigError("op inpaint needs --rect top,left,bottom,right; it may be given again")
    story["edits"].append({"rect": [corners(rect) for rect in options.pop("rect")]} | options)
    made = replayed(workdir, story, which, step)
    if file:
        file.write_text(json.dumps(story, indent=2) + "\n")
    return made


def story_in(file: Path) -> dict[str, Any]:
    """What is in a session's file; `ConfigError` where it is none."""
    try:
        story = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"--session {file} does not read as JSON: {error}") from None
    image, edits = (story.get("image"), story.get("edits")) if isinstance(story, dict) else (None, None)
    if not isinstance(image, str) or not isinstance(edits, list) or not all(_is_edit(one) for one in edits):
        raise ConfigError(f"--session {file} is no session: it needs image, a path, and edits, a list of mappings with rect")
    return story


def _is_edit(one: Any) -> bool:
    rects = one.get("rect") if isinstance(one, dict) else None
    numbers = isinstance(rects, list) and all(isinstance(rect, list) for rect in rects)
    return numbers and all(isinstance(side, int) for rect in rects for side in rect)


def corners(rect: str) -> list[int]:
    """[top, left, bottom, right] of 'top,left,bottom,right'; `ConfigError` where it has something else than numbers."""
    try:
        return [int(side) for side in rect.split(",")]
    except ValueError:
        raise ConfigError(f"--rect {rect}: give top,left,bottom,right in pixels, 0,0,4,8 for example") from None


def replayed(workdir: str, story: Mapping[str, Any], which: str, step: int | None) -> np.ndarray:
    """Every picture of a session, one after the other; outside its rectangles an edit changes nothing."""
    space = Space(stage_of(workdir, which, step, {}).task, first_stage.kept(workdir))
    states = [pictures.to_uint8(images_at(story["image"], space.shape)[:1])]
    for one in story["edits"]:
        ways = dict(one)
        mask = rectangles(space.shape, ways.pop("rect"))
        label, prompt, seed = (ways.pop(name, None) for name in ("label", "prompt", "seed"))
        how_read = {name: ways.pop(name) for name in ("negative", "truncate") if name in ways} | {"prior": {"seed": seed or 0}}
        strength = ways.pop("strength", 1.0)
        stage = stage_of(workdir, which, step, ways)
        raw = asked(workdir, space, label, [prompt] if isinstance(prompt, str) else prompt, 1, **how_read)
        image, recipe = jnp.asarray(pictures.to_unit(states[-1])), stage.recipe
        if "inpaint" in space.task.cond.keys:
            raw |= space.seen(image, mask)
        how = How(jnp.float32(recipe.guidance), jnp.float32(recipe.phi), strength=jnp.float32(strength))
        made = edit(stage.task, recipe, stage.params, raw, jnp.arange(1), jax.random.key(seed or 0), how, recipe.guidance != 1,
                    None, space.encode(image), space.known(mask))
        states.append(pictures.to_uint8(np.asarray(mask * image + (1 - mask) * space.decode(made))))
    return np.concatenate(states)


def written(out: Path, rows: np.ndarray, said: str) -> None:
    """uint8 [rows, N, H, W, C] as a grid and, where there are several rows, as an animation with a frame for each."""
    count, columns = rows.shape[:2]
    pictures.save_png(out.with_suffix(".png"), pictures.grid(rows.reshape(-1, *rows.shape[2:]), columns))
    files = [out.with_suffix(".png")]
    if count > 1:
        files += animated(out, np.stack([pictures.grid(row) for row in rows]))
    print(f"{said}: {', '.join(map(str, files))}")


def animated(out: Path, frames: np.ndarray) -> list[Path]:
    """uint8 [N, h, w, 1 or 3] as a GIF and, where imageio-ffmpeg is there, as an MP4; frames below 128 pixels are enlarged.

    Raises:
      ConfigError: imageio is missing.
    """
    try:
        import imageio.v3 as imageio
    except ImportError:
        raise ConfigError("animations need imageio: pip install imageio") from None
    factor = max(1, 128 // min(frames.shape[1:3]))
    frames = np.repeat(np.repeat(frames, factor, axis=1), factor, axis=2)
    frames = np.repeat(frames, 3, axis=-1) if frames.shape[-1] == 1 else frames
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")   # MP4 wants even
    imageio.imwrite(out.with_suffix(".gif"), list(frames), duration=1000 * SECONDS, loop=0)
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        print("no MP4: pip install imageio-ffmpeg")
        return [out.with_suffix(".gif")]
    imageio.imwrite(out.with_suffix(".mp4"), frames, fps=1 / SECONDS, macro_block_size=2, plugin="FFMPEG")
    return [out.with_suffix(".gif"), out.with_suffix(".mp4")]
