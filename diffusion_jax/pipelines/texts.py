"""The texts of a pipeline, embedded once: the same prompt under another seed runs no text tower.

A published text tower is larger than the network that it serves (T5-XXL has 4.8 billion weights,
Stable Diffusion 3's transformer 2), and what it makes of a text depends on the text alone. So what
came of the last texts is kept, on the host, by their tokens. Each is embedded in a batch of its
own, so that it is the same bits whatever is asked for beside it. An empty text and a negative one
are texts too.

With `offload` the towers live on the host, and are on the device only while they run.
"""
from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.models.sd3_text import SD3Text
from diffusion_jax.models.sdxl_text import XLText
from diffusion_jax.models.text_cond import TowerText
from diffusion_jax.runs.folder import Model
from diffusion_jax.tasks.denoising import AWAY, READY
from diffusion_jax.types import Cond, Params, Raw

if TYPE_CHECKING:
    from diffusion_jax.pipelines.pipeline import Pipeline

MOST = 32
"""Texts that are remembered: 170 MB of Stable Diffusion 3's."""
KEYS = ("tokens", "sizes")
"""What the conditioners with text towers read."""


def has_towers(task: Any) -> bool:
    """Whether a task's condition is a text through frozen towers, and nothing else."""
    cond = getattr(task, "cond", None)  # transformers over tokens have none
    return isinstance(cond, SD3Text | XLText | TowerText) and cond.frozen


class Texts:
    """What became of texts.

    Args:
      offload: whether the towers are kept on the host (`offloaded`).
      most: how many texts are remembered; of more, those that were last used.
    """

    def __init__(self, offload: bool = False, most: int = MOST):
        self.offload = offload
        self.most = most
        self._params: Params = None
        self._embedded: OrderedDict[bytes, dict[str, Any]] = OrderedDict()

    def network(self, model: Model) -> Model:
        """What the sampler takes to the device: with `offload` the model without its towers."""
        return replace(model, params={**model.params, "cond": {}}) if self.offload else model

    def ready(self, model: Model, raw: Raw, guides: bool) -> Raw:
        """Raw conditions with what the towers make of their texts, [num, ...] each.

        Args:
          model: the run's.
          raw: conditions, [num, ...] each.
          guides: whether guidance leads away from another text.

        Returns:
          `raw` itself where the model has no text towers, or learned them with its network.
        """
        if not has_towers(model.task) or "tokens" not in raw:
            return raw
        names = [name for name in (*KEYS, "negative") if name in raw]
        rows: dict[bytes, int] = {}
        count = len(raw["tokens"])
        numbers = np.array(
            [rows.setdefault(_bytes(raw, names, i), len(rows)) for i in range(count)]
        )
        firsts = np.unique(numbers, return_index=True)[1]
        texts = ({name: raw[name][i : i + 1] for name in names} for i in firsts)
        pairs = [self._pair(model, text, guides) for text in texts]
        made: dict[str, Any] = {}
        for prefix, conds in zip((READY, AWAY), zip(*pairs, strict=True), strict=False):
            for name in conds[0]:
                table = np.concatenate([cond[name] for cond in conds])
                made[prefix + name] = Rows(table, numbers)
        return {**raw, **made}

    def _pair(self, model: Model, row: Raw, guides: bool) -> tuple[Cond, ...]:
        """What the network sees of one text, and of the one that guidance leads away from."""
        texts = (row, model.task.away(row)) if guides else (row,)
        read = ({name: text[name] for name in KEYS if name in text} for text in texts)
        return tuple(self._of(model, text) for text in read)

    def _of(self, model: Model, text: Raw) -> Cond:
        """What the network sees of one text, [1, ...] each."""
        if self._params is not model.params["cond"]:
            self._params = model.params["cond"]
            self._embedded.clear()
        key = _bytes(text, tuple(text), 0)
        if key not in self._embedded:
            self._embedded[key] = jax.device_get(dict(_embed(model.task, self._params, text)))
        self._embedded.move_to_end(key)
        made = self._embedded[key]
        while len(self._embedded) > self.most:
            self._embedded.popitem(last=False)
        return made


class Rows:
    """Rows of a table by their numbers, as an array that takes no room of its own.

    Attributes:
      shape, dtype: as of an array.
    """

    def __init__(self, table: np.ndarray, numbers: np.ndarray):
        self._table = table
        self._numbers = numbers
        self.shape = (len(numbers), *table.shape[1:])
        self.dtype = table.dtype

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> np.ndarray:
        """The rows that an index of NumPy's takes."""
        return self._table[self._numbers[index]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._table[self._numbers].astype(dtype or self.dtype)


@functools.partial(jax.jit, static_argnums=0)
def _embed(task: Any, params: Params, raw: Raw) -> Cond:
    return task.embed({"cond": params}, raw)


def _bytes(raw: Raw, names: Sequence[str], i: int) -> bytes:
    """What tells row i from others."""
    return b"".join(name.encode() + np.asarray(raw[name][i]).tobytes() for name in names)


def offloaded(pipe: Pipeline) -> Pipeline:
    """A pipeline whose text towers are on the host, and on the device only while they run.

    Raises:
      ConfigError: it has none, or another model reads its texts too.
    """
    run = pipe.run
    if not has_towers(run.task):
        raise ConfigError(
            "offload (--offload) is for frozen text towers, as those of Stable Diffusion: this model "
            "has none, leave it out"
        )
    if pipe.weak is not None or pipe.upsamplers:
        raise ConfigError(
            "offload (--offload) is for a model alone: leave --weak and --upsampler out"
        )
    towers = jax.tree.map(lambda leaf: np.array(leaf), run.model.params["cond"])
    model = replace(run.model, params={**run.model.params, "cond": towers})
    return replace(pipe, run=run._replace(model=model), texts=Texts(offload=True))


def repeated(prompts: Sequence[str] | None, total: int) -> tuple[str, ...] | None:
    """The prompt of each of `total` pictures: all of the first, then of the second ..."""
    if prompts is None:
        return None
    return tuple(prompt for prompt in prompts for _ in range(total // len(prompts)))
