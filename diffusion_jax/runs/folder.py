"""A run's folder, open: its config, its task and one set of its weights.

    run = open_run("runs/digits")
    run.model.task, run.model.params          what was trained, and its weights
    run.tokens(["a cat"])                     what the model reads of a text

A folder alone is enough: its checkpoint carries the config, and its folder `first_stage` the frozen
part that the run was trained on. What travels from here on is `Model`, a pytree whose task is
static: two checkpoints of one kind share a compiled program.
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

from diffusion_jax.build import ConfigError, build
from diffusion_jax.runs import held_out, page
from diffusion_jax.train.checkpoint import Checkpoints, available, config_of, weights
from diffusion_jax.train.lock import one_writer
from diffusion_jax.train.state import plain, task_of
from diffusion_jax.train.steps import newest
from diffusion_jax.types import Params, Raw, Task, TrainState

STEPS = "checkpoints"
"""The folder, in that of a run, of its checkpoints (train/checkpoint.py)."""
FIRST = "first_stage"
"""The folder, in that of a run, of the frozen part that it was trained on."""


@flax.struct.dataclass
class Model:
    """A task with its weights.

    Attributes:
      params: the task's parameters.
      first: those of its frozen first stage; None where it has none.
      task: what was trained, a `Task`; tasks/kinds.py says what it can do. Static under `jax.jit`.
    """

    params: Params
    first: Params | None
    task: Any = flax.struct.field(pytree_node=False)

    @property
    def frozen(self) -> Params:
        """What a task's loss takes beside its parameters: {'first_stage': ...}, or None."""
        return None if self.first is None else {FIRST: self.first}


class Run(NamedTuple):
    """A run's folder, open.

    Attributes:
      folder: the run's own, whichever folder in it was named: what came with the run lies there.
      step: of the checkpoint that was read.
      which: the weights that were read: 'params', or the name of an average.
      config: the run's page as it is stored with the checkpoint, plain JSON.
      model: what was trained.
      digest: a number that differs where the weights do (train/digest.py); 0 for weights in memory.
    """

    folder: str
    step: int
    which: str
    config: Mapping[str, Any]
    model: Model
    digest: int = 0

    @property
    def task(self) -> Any:
        """What was trained."""
        return self.model.task

    @property
    def identity(self) -> dict[str, Any]:
        """What tells these weights from all others, for what is kept on disk."""
        # The digest too: another run may have been trained in the same folder since.
        return {
            "run": str(Path(self.folder).resolve()),
            "which": self.which,
            "step": self.step,
            "digest": self.digest,
        }

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

    def tokens(self, prompts: Sequence[str], truncate: bool = False) -> np.ndarray:
        """Texts as this model reads them: int32 [P, T].

        Args:
          prompts: the texts.
          truncate: cut those that are too long, which are refused without it.

        Raises:
          ConfigError: the model came without a tokenizer, or what the tokenizer refuses.
        """
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise ConfigError(
                "this model came without a tokenizer, so it reads no prompts: train it with "
                "data.decode.tokenizer"
            )
        return np.stack([tokenizer(prompt, truncate=truncate) for prompt in prompts])

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes in the order of their labels; None where the data has none,
        or is not there."""
        data = self.config.get("data", {})
        return build(data["train"]).names if "train" in data else None

    def captions(self, num: int) -> list[str]:
        """Captions of `num` held-out images, spread over them; they come again where there are
        fewer.

        Raises:
          ConfigError: the model came without data, or its data has no captions.
        """
        if "test" not in self.config.get("data", {}):
            raise ConfigError(
                "this model came without data, so it has no captions of its own: give a prompt "
                "(--prompt)"
            )
        return held_out.captions(self.config["data"], num)

    def held_out(self, num: int) -> Raw:
        """'image' [num, H, W, C] in [-1, 1], and 'tokens' of captions, of images spread over those
        held out.

        Raises:
          ConfigError: the model came without data.
        """
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
      ConfigError: no such folder, step or weights, a damaged checkpoint, or another kind of model.
    """
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
        chosen = weights(root, which, step)
        home = _home(folder, root)
        model = Model(params=chosen.params, first=first_stage(home), task=task)
        return Run(str(home), chosen.step, chosen.name, config, model, chosen.digest)

    # The run may be training on, and remove what is read here.
    return newest(folder, step, read)


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
    folder: str | os.PathLike[str], config: Mapping[str, Any], params: Params, step: int = 0
) -> None:
    """Writes weights that were not trained here as a checkpoint, of step 0, that `open_run` reads.

    Args:
      folder: made where it is missing; ~ is expanded.
      config: the page that the checkpoint carries.
      params: the weights.
      step: another one, where the weights have it.

    Raises:
      ConfigError: the folder holds a run, or another process writes it.
    """
    folder = Path(folder).expanduser()
    # No optimiser and no averages: 'ema' then means these parameters.
    state = TrainState(step=jnp.int32(step), params=params, opt_state=(), ema={})
    with one_writer(folder, "written"):
        if holds_run(folder):
            raise ConfigError(f"{folder} holds a run: choose another folder")
        with Checkpoints(folder, config, every=1, keep=1) as checkpoints:
            checkpoints.save(state)
