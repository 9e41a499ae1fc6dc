"""From what a person asks for to what a model is conditioned on: labels, tokens, pictures.

    Request            ->  Raw, [num, ...] each      (`conditions_of`)
    a model, held-out  ->  Raw                       (`held_out_conditions`)
"""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.data import pictures
from diffusion_jax.data.image import to_channels, to_unit
from diffusion_jax.files import composed
from diffusion_jax.models.cond import check_labels, optional_keys
from diffusion_jax.pipelines import sizes, unclip
from diffusion_jax.pipelines.guidance_input import refuse_second
from diffusion_jax.pipelines.request import Pictures, Request, check_pictures
from diffusion_jax.runs import held_out
from diffusion_jax.runs.folder import Model, Run
from diffusion_jax.tasks import kinds
from diffusion_jax.types import Raw

FLAGS = {"tokens": "prompt"}
"""What a user gives for a raw condition, where it has another name."""
NUMBER = re.compile(r"-?\d{1,18}", re.ASCII)
"""A class by its number; `int` takes '1_0' and other alphabets' digits for numbers too."""


def conditions(
    task: Any, num: int, labels: np.ndarray | None = None, raw: Raw | None = None, guide: Any = None
) -> Raw:
    """Raw conditions for `num` images.

    Args:
      task: the model's, tasks/kinds.py:Pictures.
      num: how many.
      labels: those of the images, int [num]; None takes the classes in turn.
      raw: conditions that cannot be made up, low_res for example, each at least [num, ...]; labels
        among them are used, and so is 'negative', a text to guide away from.
      guide: the task of a classifier, which needs labels too, or of a CLIP, whose texts are in
        `raw`.

    Raises:
      ConfigError: a label that does not exist, or one asked of a model that takes none; a condition
        that is missing or too short.
    """
    raw = dict(raw or {})
    texts = () if guide is None or guide.target == "label" else (guide.target,)
    if texts and texts[0] not in raw:
        raise ConfigError("a CLIP guides towards a text: give a prompt (--prompt)")
    negative = ("negative",) if "tokens" in task.cond.keys else ()
    optional = optional_keys(task.cond)
    names = (*task.cond.keys, *task.cond.droppable, *optional, *texts, *negative)
    # Only what is read goes on: raw conditions of a cascade go through all of its stages, and a key
    # that no one reads would still compile another program.
    raw = {name: value[:num] for name, value in raw.items() if name in names}
    classes = _classes(task, guide)
    if labels is not None and not classes:
        raise ConfigError("this model takes no label: leave label (--label) out")
    if labels is not None:
        check_labels({"label": labels}, classes)
        raw["label"] = labels.astype(np.int32)
    elif classes and "label" not in raw:
        # In turn and not at random: picture i of a seed does not depend on `num`.
        raw["label"] = (np.arange(num) % classes).astype(np.int32)
    _check_raw(task, raw, num)
    task.cond.check(raw)
    return raw


def _classes(task: Any, guide: Any) -> int:
    """How many labels there are: the model's, or its classifier's."""
    if guide is None or guide.target != "label":
        return task.num_classes
    if task.num_classes and task.num_classes != guide.num_classes:
        raise ConfigError(
            f"the classifier knows {guide.num_classes} classes, the model {task.num_classes}: "
            "they must be the same"
        )
    return guide.num_classes


def _check_raw(task: Any, raw: Raw, num: int) -> None:
    """Raises ConfigError for a condition that the model reads and that is missing, too short, or
    of another shape."""
    for name in task.cond.keys:
        if name not in raw:
            flag = FLAGS.get(name, name)
            raise ConfigError(f"this model is conditioned on {name!r}: give {flag} (--{flag})")
        if len(raw[name]) < num:
            raise ConfigError(
                f"{num} images need as many of {name!r}, there are {len(raw[name])}: lower num "
                "(--num)"
            )
    for name, shape in derived_shapes(task).items():
        if raw[name].shape[1:] != shape:
            raise ConfigError(
                f"this model was trained on {name} of {shape}, not {raw[name].shape[1:]}: give it "
                "such images"
            )


def derived_shapes(task: Any) -> dict[str, tuple[int, ...]]:
    """The shape [h, w, C] of every condition that training makes of an image."""

    def prepared(image: jax.Array) -> Raw:
        return task.cond.prepare({"image": image}, jax.random.key(0))

    # By tracing the conditioner: how an image is shrunk is written down nowhere else.
    raw = jax.eval_shape(prepared, jax.ShapeDtypeStruct((1, *task.shape), jnp.float32))
    return {name: raw[name].shape[1:] for name in task.cond.derived}


def request_of(what: Any, run: Run, *helpers: Run | None) -> Request:
    """`Request.of`; where neither the model nor a CLIP among its helpers reads texts, and classes
    have names, a text is such a name. A request stays as it is.

    Raises:
      ConfigError: what `Request.of` refuses; no class has that name.
    """
    request = Request.of(what)
    if isinstance(what, Request) or request.prompts is None or _reads_texts(run, helpers):
        return request
    names = run.class_names or ()
    for text in request.prompts if names else ():
        if text not in names and not NUMBER.fullmatch(text):
            raise unknown("name of a class (this model reads no text)", text, names)
    return Request(label=request.prompt) if names else request


def _reads_texts(run: Run, helpers: tuple[Run | None, ...]) -> bool:
    tasks = [helper.task for helper in helpers if helper is not None]
    if isinstance(run.task, kinds.Tokens) or any(isinstance(one, kinds.TwoTowers) for one in tasks):
        return True
    return run.task.embedder is not None or "tokens" in run.task.cond.keys


def conditions_of(
    run: Run,
    request: Request,
    num: int,
    seed: int = 0,
    guide: Run | None = None,
    prior: unclip.Prior | str | None = None,
    extra: Raw | None = None,
) -> Raw:
    """Raw conditions of `num` images of a request, as many for each of its rows.

    Args:
      run: the model.
      request: what is asked for.
      num: how many in all, a multiple of `request.rows`.
      seed: of unCLIP's prior.
      guide: a classifier or a CLIP that guides.
      prior: where the embeddings of unCLIP's decoder come from.
      extra: conditions that were made already, [num, ...] each.

    Raises:
      ConfigError: prompts for a model that reads none, and that no CLIP guides; a model without a
        tokenizer; a prompt that is too long; what `conditions` refuses.
    """
    task = run.task
    raw = dict(extra or {})
    if request.low_res is not None:
        # Its file may bring labels; those of the request, below, come before them.
        raw |= low_resolution(request.low_res, task)
    raw |= _texts_of(run, request, num, seed, guide, prior)
    raw |= sizes.conditions(task, request.sizes, num)
    labels = label_numbers(run, request, num)
    return conditions(task, num, labels, raw, None if guide is None else guide.task)


def label_numbers(run: Run, request: Request, num: int) -> np.ndarray | None:
    """The labels asked for, int [num]; None without any.

    Raises:
      ConfigError: a name that is no class's.
    """
    if request.labels is None:
        return None
    numbers = [_label_number(run, label) for label in request.labels]
    return np.repeat(numbers, num // len(numbers))  # all of the first label, then of the second ...


def _label_number(run: Run, label: int | str) -> int:
    if not isinstance(label, str):
        return int(label)
    # Before numbers: of the folders '1', '10' and '2' the class '10' is number 1.
    names = run.class_names or ()
    for spell in (str, composed):
        spelt = [spell(name) for name in names]
        if spell(label) in spelt:
            return spelt.index(spell(label))
    # A flag is text, so '3' is the class number 3. '-1' too: `_check_labels` says what is wrong.
    if NUMBER.fullmatch(label):
        return int(label)
    if not names:
        raise ConfigError(f"label {label!r}: this model's classes have no names, give a number")
    raise unknown("class", label, names)


def _texts_of(
    run: Run,
    request: Request,
    num: int,
    seed: int,
    guide: Run | None,
    prior: unclip.Prior | str | None,
) -> Raw:
    """What a request's texts give: tokens, the features that a CLIP guides towards, embeddings
    of unCLIP."""
    _check_texts(run, request, prior)
    refuse_second(run.task, negative=request.negative is not None)
    prompts = request.prompts
    if run.task.embedder is not None:
        truncate = request.truncate
        return unclip.conditions_of(run, prior, prompts, num, seed, truncate, request.embedding)
    if prompts is not None:
        return _of_prompts(run, request, prompts, num, guide)
    # Held-out captions are for a model that came with its data. Of another `conditions` says what
    # is missing, or the caller makes tokens itself.
    has_captions = "tokens" in run.task.cond.keys and "test" in run.config.get("data", {})
    return _own_captions(run, num) if has_captions else {}


def _check_texts(run: Run, request: Request, prior: unclip.Prior | str | None) -> None:
    """Raises ConfigError for a text, or what goes with one, that the model does not read."""
    prompts = request.prompts
    if prompts is None and request.truncate:
        raise ConfigError(
            "truncate (--truncate) cuts prompts: give a prompt (--prompt), or leave it out"
        )
    if run.task.embedder is not None:
        # Guidance leads it away from a null embedding too, which a text alone does not give.
        if request.negative is not None:
            raise ConfigError(
                "negative (--negative) is for a model that reads nothing but a text: leave it out"
            )
        return
    if prior is not None or request.embedding is not None:
        raise ConfigError(
            "a prior (--prior) is for a decoder of unCLIP: this model reads no embeddings"
        )
    if request.negative is not None and not (prompts and "tokens" in run.task.cond.keys):
        raise ConfigError(
            "negative (--negative) goes with a prompt (--prompt) and a model that reads text"
        )


def _of_prompts(
    run: Run, request: Request, prompts: tuple[str, ...], num: int, guide: Run | None
) -> Raw:
    """Tokens of prompts and of the negative one, and the features that a CLIP guides towards,
    [num, ...] each."""
    raw: dict[str, np.ndarray] = {}
    each = num // len(prompts)
    if "tokens" in run.task.cond.keys:
        tokens = run.tokens(prompts, request.truncate)  # [P, T]
        raw["tokens"] = np.repeat(tokens, each, axis=0)  # [num, T]
    if request.negative is not None:
        tokens = run.tokens([request.negative], request.truncate)  # [1, T]
        raw["negative"] = np.repeat(tokens, num, axis=0)  # [num, T]
    if guide is not None and isinstance(guide.task, kinds.TwoTowers):
        # By the CLIP's own tokenizer, which need not be the model's.
        features = _encode_text(guide.model, guide.tokens(prompts, request.truncate))  # [P, F]
        raw[guide.task.target] = np.repeat(np.asarray(features), each, axis=0)  # [num, F]
    if not raw:
        raise ConfigError(
            "this model reads no text: leave prompt (--prompt) out, or give a CLIP as classifier "
            "(--classifier)"
        )
    return raw


def _own_captions(run: Run, num: int) -> Raw:
    """The tokens of held-out captions."""
    if run.tokenizer is None:
        raise ConfigError(
            "this model reads captions: give data that has them, and data.decode.tokenizer"
        )
    # Cut as in training, where nobody can shorten a caption.
    return {"tokens": run.tokens(run.captions(num), truncate=True)}  # [num, T]


@jax.jit
def _encode_text(clip: Model, tokens: np.ndarray) -> jax.Array:
    """Unit vectors [N, F] of texts, tokens [N, T]."""
    return clip.task.encode_text(clip.params, tokens)


def low_resolution(images: Pictures, task: Any) -> Raw:
    """The raw conditions in a file of small images: low_res in [-1, 1] and, if there are any,
    labels.

    Raises:
      ConfigError: the model is no upsampler, or what `read_batch` refuses.
    """
    if "low_res" not in task.cond.keys:
        raise ConfigError(
            "low_res (--low_res) is for an upsampler: this model makes images of nothing"
        )
    batch, labels = read_pictures(images)
    small = to_unit(np.stack([to_channels(image, channels_of(task)) for image in batch]))
    # Samples are saved with their labels, under which the upsampler goes on.
    return {"low_res": small} | ({} if labels is None else {"label": labels.astype(np.int32)})


def channels_of(task: Any) -> int:
    """Channels of a picture."""
    return task.picture_shape[-1]


def read_pictures(images: Pictures) -> tuple[np.ndarray, np.ndarray | None]:
    """(images uint8 [N, H, W, C], labels or None) of an array, a file or a folder.

    Raises:
      ConfigError: no pictures, or what `pictures.read_batch` refuses.
    """
    check_pictures("images", images)
    if images is None or (isinstance(images, str) and not images):
        raise ConfigError("give pictures (--images): an image, a folder of them or an .npz")
    if isinstance(images, np.ndarray):
        return (images if images.ndim == 4 else images[None]), None
    path = Path(images).expanduser()
    # A device or a pipe, which a session from elsewhere may name, would be waited for for ever.
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ConfigError(f"{images} is no file: give an .npz, an image or a folder of images")
    return pictures.read_batch(path)


def pictures_of(images: Pictures, shape: tuple[int, int, int], flag: str) -> np.ndarray:
    """Pictures of `shape` (H, W, C), [N, H, W, C] in [-1, 1].

    Args:
      images: where they are.
      shape: what the model makes.
      flag: what the command line calls them, for the error.

    Raises:
      ConfigError: they have another size than the model's.
    """
    batch, _ = read_pictures(images)
    batch = np.stack([to_channels(image, shape[-1]) for image in batch])  # [N, H, W, C]
    # Refused, not resized: how a picture is cropped to a size is for its owner to choose.
    if batch.shape[1:] != shape:
        where = "" if isinstance(images, np.ndarray) else f" {images}"
        raise ConfigError(
            f"--{flag}{where} has pictures of {batch.shape[1:]}, this model makes {shape}"
        )
    return to_unit(batch)


def one_picture(images: Pictures, shape: tuple[int, int, int]) -> np.ndarray:
    """The picture that is inpainted, [1, H, W, C] in [-1, 1].

    Raises:
      ConfigError: several of them, or what `pictures_of` refuses.
    """
    several = pictures_of(images, shape, "images")
    if len(several) != 1:
        raise ConfigError(f"inpainting changes one picture, --images has {len(several)}: name one")
    return several


def held_out_conditions(run: Run, num: int) -> Raw:
    """Conditions of `num` held-out images where the model makes some of an image, as an upsampler
    does, or reads captions.

    Raises:
      ConfigError: there is such a condition and no data to make it of.
    """
    task = run.task
    data = run.config.get("data", {})
    reads_text = "tokens" in task.cond.keys
    if "test" not in data and (task.embedder is not None or reads_text or task.cond.derived):
        raise ConfigError(
            "this model came without data to make its conditions of: give them to --mode sample, "
            "with --out x.npz, and measure those --images"
        )
    if task.embedder is not None:
        return unclip.held_out(task.embedder, run.model.first, data, num)
    texts = dict(_own_captions(run, num)) if reads_text else {}
    if not task.cond.derived:
        return texts
    images, labels = held_out.pictures(data, "test", num)
    # Level 0: no noise yet, for sampling adds what its recipe says (`augment`).
    raw = task.cond.prepare({"image": jnp.asarray(to_unit(images))}, jax.random.key(0), level=0.0)
    derived = {name: np.asarray(raw[name]) for name in task.cond.derived}
    if labels is not None:
        derived["label"] = labels
    # They come again where fewer are held out than pictures are to be measured.
    return texts | {name: value[np.arange(num) % len(images)] for name, value in derived.items()}
