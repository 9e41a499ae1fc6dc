"""A run's folder, open: its config, its task and one set of its weights.

    run = open_run("runs/digits")
    run.model.task, run.model.params          what was trained, and its weights
    run.tokens(["a cat"])                     what the model reads of a text

A folder alone is enough: its checkpoint carries the config, and its folder `first_stage` the frozen
part that the run was trained on. What travels from here on is `Model`, a pytree whose task is
static: two checkpoints of one kind share a compiled program. Of a LoRA (runs/lora.py) the weights
are those of its base, in the folder `base`, with the factors merged into them.
"""
from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build, number, short
from diffusion_jax.files import half_letter
from diffusion_jax.nn.lora import merged
from diffusion_jax.runs import held_out, page
from diffusion_jax.tasks.lora import adapted
from diffusion_jax.train.checkpoint import Checkpoints, Weights, available, config_of, weights
from diffusion_jax.train.digest import CHAIN
from diffusion_jax.train.lock import one_writer
from diffusion_jax.train.state import plain, task_of
from diffusion_jax.train.steps import newest
from diffusion_jax.types import Params, Raw, Task, TrainState

STEPS = "checkpoints"
"""The folder, in that of a run, of its checkpoints (train/checkpoint.py)."""
FIRST = "first_stage"
"""The folder, in that of a run, of the frozen part that it was trained on."""
TEACHER = "teacher"
"""The folder, in that of a run, of the diffusion model that it learns from."""
BASE = "base"
"""The folder, in that of a run, of the run whose weights its LoRA changes."""
LORA_FILE = "lora.safetensors"
"""In the folder of a run that trains a LoRA: its factors, for other programs and `--lora`."""


@flax.struct.dataclass
class Model:
    """A task with its weights.

    Attributes:
      params: the task's parameters.
      first: those of its frozen first stage; None where it has none.
      teacher: those of the model that it learns from, while it trains; None elsewhere.
      task: what was trained, a `Task`; tasks/kinds.py says what it can do. Static under `jax.jit`.
    """

    params: Params
    first: Params | None
    task: Any = flax.struct.field(pytree_node=False)
    teacher: Params | None = None

    @property
    def frozen(self) -> Params:
        """What a task's loss takes beside its parameters, by name; None where that is nothing."""
        parts = {FIRST: self.first, TEACHER: self.teacher}
        return {name: part for name, part in parts.items() if part is not None} or None


class Run(NamedTuple):
    """A run's folder, open.

    Attributes:
      folder: the run's own, whichever folder in it was named: what came with the run lies there.
      step: of the checkpoint that was read.
      which: the weights that were read: 'params', or the name of an average.
      config: the run's page as it is stored with the checkpoint, plain JSON.
      model: what was trained.
      digest: a number that differs where the weights do (train/digest.py); 0 for weights in memory.
      classes: the names of the classes of its data, as the checkpoint has them; None without.
      loras: files of LoRAs that were merged into the weights (pipelines/lora.py), each with its
        strength and content, plain JSON.
    """

    folder: str
    step: int
    which: str
    config: Mapping[str, Any]
    model: Model
    digest: int = 0
    loras: tuple[Mapping[str, Any], ...] = ()
    classes: tuple[str, ...] | None = None

    @property
    def task(self) -> Any:
        """What was trained."""
        return self.model.task

    @property
    def identity(self) -> dict[str, Any]:
        """What tells these weights from all others, for what is kept on disk."""
        # The digest too: another run may have been trained in the same folder since.
        identity = {
            "run": str(Path(self.folder).resolve()),
            "which": self.which,
            "step": self.step,
            "digest": self.digest,
        }
        return identity | ({"loras": [dict(one) for one in self.loras]} if self.loras else {})

    def data(self, instead: str) -> Mapping[str, Any]:
        """The page's section `data`; `ConfigError` that says what to do `instead` where there is
        none."""
        return page.data_of(self.config, instead)

    def recipe(self) -> dict[str, Any]:
        """How the page samples: fields of `pipelines.recipe.Recipe`."""
        return page.recipe_fields(self.config)

    @property
    def tokenizer(self) -> Any:
        """What makes tokens of texts; None where the model came without."""
        if "data" not in self.config:
            return None
        # As text, which a cache can compare.
        return _tokenizer(json.dumps(self.config["data"]["decode"]))

    def tokens(self, prompts: str | Sequence[str], truncate: bool = False) -> np.ndarray:
        """Texts as this model reads them: int32 [P, T].

        Args:
          prompts: the texts; one may stand alone.
          truncate: cut those that are too long, which are refused without it.

        Raises:
          ConfigError: the model came without a tokenizer, what are no texts, or what the tokenizer
            refuses.
        """
        # Of a text alone each letter would be a prompt.
        several = [prompts] if isinstance(prompts, str) else prompts
        listed = isinstance(several, (list, tuple)) and len(several) > 0
        if not listed or not all(isinstance(prompt, str) for prompt in several):
            raise ConfigError(f"prompts are a text, or a list of several: got {short(prompts)}")
        broken = next(filter(half_letter, several), None)
        if broken is not None:
            raise ConfigError(
                f"the prompt {short(broken)} holds half a letter (a lone surrogate): write it in "
                "UTF-8"
            )
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise ConfigError(
                "this model came without a tokenizer, so it reads no prompts: train it with "
                "data.decode.tokenizer"
            )
        return np.stack([tokenizer(prompt, truncate=truncate) for prompt in several])

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes in the order of their labels: those of the checkpoint, which
        needs no data, else those of the data. None where these have none, or are not there."""
        data = self.config.get("data", {})
        if self.classes is not None or "train" not in data:
            return self.classes
        try:
            return build(data["train"]).names
        except (ConfigError, OSError):  # a checkpoint of before, on another machine
            return None

    def captions(self, num: int) -> list[str]:
        """Captions of `num` held-out images, spread over them; they come again where there are
        fewer.

        Raises:
          ConfigError: the model came without data, or its data has no captions; no number.
        """
        num = int(number("num", num, 1, integer=True))
        if "test" not in self.config.get("data", {}):
            raise ConfigError(
                "this model came without data, so it has no captions of its own: give a prompt "
                "(--prompt)"
            )
        return held_out.captions(self.config["data"], num)

    def held_out(self, num: int) -> Raw:
        """'image' [num, H, W, C] in [-1, 1], and 'tokens' of captions, of images spread over those
        held out; all of them where there are fewer.

        Raises:
          ConfigError: the model came without data; no number.
        """
        num = int(number("num", num, 1, integer=True))
        data = self.data("it has no held-out images")
        # A batch of `num` is all of them.
        return next(held_out.batches(data, "test", num, num))


@functools.lru_cache(maxsize=8)
def _tokenizer(decode: str) -> Any:
    """The tokenizer of a page's section data.decode, as JSON: reading merges takes a while."""
    return getattr(build(json.loads(decode)), "tokenizer", None)


def open_run(
    folder: str | os.PathLike[str],
    kind: Any = None,
    which: str = "ema",
    step: int | None = None,
    flag: str = "",
) -> Run:
    """Opens a run's folder; nothing else is needed.

    Args:
      folder: a run's folder, its folder 'checkpoints', or the folder of one step; ~ is expanded.
      kind: what it is to hold, one of tasks/kinds.py or several; None takes all.
      which: 'params', the name of an average, or 'ema' for the only one.
      step: which checkpoint, the newest by default.
      flag: what the command line calls the folder, for errors: '--classifier '.

    Raises:
      ConfigError: no such folder, step or weights, a damaged checkpoint, or another kind of model;
        what is no folder, no name of weights or no kind.
    """
    if not isinstance(folder, (str, os.PathLike)):
        name = flag.strip().removeprefix("--")
        what = f"{name} ({flag.strip()})" if name else "a run"
        raise ConfigError(f"{what} is a folder, or a run that is open: got {short(folder)}")
    if not isinstance(which, str):
        raise ConfigError(f"which (--which) is the name of weights: got {short(which)}")
    _check_kinds(kind)
    folder = Path(folder).expanduser()

    def read(root: Path, step: int) -> Run:
        config = plain(config_of(root, step))
        try:
            page.check_stored(config)
            task = task_of(config)
        except ConfigError as error:
            raise ConfigError(f"the config in {root / str(step)}: {error}") from None
        # Before the weights are read: another kind of model may have gigabytes of them.
        check_kind(task, kind, f"{flag}{folder}")
        home = _home(folder, root)
        chosen = _whole(home, config, task, weights(root, which, step))
        model = Model(params=chosen.params, first=first_stage(home), task=task)
        return Run(
            str(home),
            chosen.step,
            chosen.name,
            config,
            model,
            chosen.digest,
            classes=chosen.classes,
        )

    # The run may be training on, and remove what is read here.
    return newest(folder, step, read)


def _check_kinds(kind: Any) -> None:
    """Raises ConfigError for what is neither None nor one of tasks/kinds.py, or several."""
    several = kind if isinstance(kind, tuple) else (kind,)
    named = [isinstance(one, type) and hasattr(one, "noun") for one in several]
    if kind is None or (named and all(named)):
        return
    raise ConfigError(
        "kind is a class of diffusion_jax.tasks.kinds, kinds.Pictures for example, or a tuple of "
        f"them: got {short(kind)}"
    )


def _whole(home: Path, config: Mapping[str, Any], task: Any, chosen: Weights) -> Weights:
    """The weights of a run: of a LoRA those of its base with the factors merged into them."""
    if "lora" not in config:
        return chosen
    base = base_of(home)
    if base.digest != config["lora"].get("base"):
        raise ConfigError(
            f"{home / BASE} holds other weights than those that the LoRA in {home} was trained on"
        )
    params = merged(base.params, chosen.params, adapted(task, config).scale)
    # Both tell these weights from others: the factors of a first step are the same on any base.
    return chosen._replace(params=params, digest=(chosen.digest * CHAIN + base.digest) % 2**32)


def base_of(home: Path) -> Weights:
    """The weights that the LoRA in a run's folder changes.

    Raises:
      ConfigError: they are not there.
    """
    if not holds_run(home / BASE):
        raise ConfigError(
            f"{home} holds a LoRA without the run that it changes: copy or link that to "
            f"{home / BASE}"
        )
    return weights(home / BASE)


def _home(folder: Path, root: Path) -> Path:
    """The run's own folder: that of its `checkpoints`, or of the steps where these lie in it bare.

    Args:
      folder: one in it, as the user names it.
      root: where the steps are, absolute.
    """
    home = root.parent if root.name == STEPS else root
    # Where the user named it itself, as they spelt it: errors quote it.
    return folder if Path(os.path.abspath(folder)) == home else home


def check_kind(task: Task, kind: Any, where: str) -> None:
    """Raises ConfigError where a task is not of a kind.

    Args:
      task: what a folder holds.
      kind: one of tasks/kinds.py, or several of which it is to be one; None takes all.
      where: what the error calls the folder.
    """
    if kind is None or isinstance(task, kind):
        return
    several = kind if isinstance(kind, tuple) else (kind,)
    raise ConfigError(
        f"{where} holds {task.noun}: give the folder of "
        f"{' or of '.join(one.noun for one in several)}"
    )


def first_stage(folder: str | os.PathLike[str]) -> Params | None:
    """The weights of the frozen first stage in a run's folder; None where there is none."""
    inner = Path(folder, FIRST)
    return weights(inner).params if holds_run(inner) else None


def holds_run(folder: str | os.PathLike[str]) -> bool:
    """Whether there is a checkpoint in a folder."""
    return Path(folder).is_dir() and bool(available(folder))


def save_start(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    params: Params,
    step: int = 0,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Writes weights that were not trained here as a checkpoint, of step 0, that `open_run` reads.

    Args:
      folder: made where it is missing; ~ is expanded.
      config: the page that the checkpoint carries.
      params: the weights.
      step: another one, where the weights have it.
      data: what the checkpoint says of the data that they were trained on (data/fingerprint.py).

    Raises:
      ConfigError: the folder holds a run, or another process writes it.
    """
    folder = Path(folder).expanduser()
    # No optimiser and no averages: 'ema' then means these parameters.
    state = TrainState(step=jnp.int32(step), params=params, opt_state=(), ema={})
    with one_writer(folder, "written"):
        if holds_run(folder):
            raise ConfigError(f"{folder} holds a run: choose another folder")
        with Checkpoints(folder, config, every=1, keep=1, data=data) as checkpoints:
            checkpoints.save(state)
