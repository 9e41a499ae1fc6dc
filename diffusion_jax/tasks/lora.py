"""A denoising task whose weights stay as they are, while low-rank factors beside them are trained (nn/lora.py).

    loss(factors) = base loss(W + s A B)                                              (1)

W is frozen['base'], an argument of the train step like all weights. Parameters, moments, averages and checkpoints are those of
the factors alone.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from diffusion_jax.build import ConfigError
from diffusion_jax.nn import lora
from diffusion_jax.tasks import kinds
from diffusion_jax.types import Array, Key, Memory, Metrics, Params, Raw

BASE = "base"
"""Where (1) finds W among the frozen parameters."""
RANK = 4
OPTIONS = ("rank", "alpha", "layers")
"""Keys of the section `lora` of a page."""


@dataclass(frozen=True)
class LowRank:
    """Trains the factors of another task's kernels.

    Attributes:
      task: whose weights W are.
      rank: of the factors.
      alpha: s of (1) is alpha / rank; None for the rank.
      layers: a regular expression over the paths of its parameters, see `nn.lora.chosen`.

    Raises:
      ConfigError: a task that is no diffusion model's, or of magnitude-preserving layers.
    """

    task: Any
    rank: int = RANK
    alpha: float | None = None
    layers: str = lora.ATTENTION

    def __post_init__(self):
        if not isinstance(self.task, kinds.Denoising):
            raise ConfigError(f"a LoRA is of {kinds.Denoising.noun}, this is {self.task.noun}: leave config.lora out")
        # What they make of W + s A B is not linear in s, and forced normalisation would move W itself.
        if getattr(self.task, "forced", False):
            raise ConfigError("magnitude-preserving layers normalise their weights, so that a LoRA has no strength there: "
                              "fine-tune the whole network (config.init without config.lora)")

    @property
    def noun(self) -> str:
        """That of the task."""
        return self.task.noun

    @property
    def needs(self) -> tuple[str, ...]:
        """Those of the task."""
        return self.task.needs

    @property
    def num_classes(self) -> int:
        """Those of the task."""
        return self.task.num_classes

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the task."""
        return self.task.shape

    @property
    def scale(self) -> float:
        """s of (1)."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def init(self, key: Key, batch: Raw) -> Params:
        """Fresh factors, of which (1) is the base's loss.

        Raises:
          ConfigError: no kernel's path matches, or one of a frozen text tower does, which no gradient reaches.
        """
        shapes = jax.eval_shape(self.task.init, key, batch)
        self.check(shapes)
        return lora.init(key, shapes, self.layers, self.rank)

    def check(self, base: Params) -> None:
        """Raises ConfigError where factors of these weights, or of their shapes, cannot be trained, as `init` does."""
        frozen = sorted(path for path in lora.chosen(base, self.layers) if _in_frozen(self.task.cond, path))
        if frozen:
            raise ConfigError(f"lora.layers {self.layers!r} matches {frozen[0]} of a frozen text tower, where no gradient is: "
                              "begin it with ^model, or set task.cond.frozen=False")

    def memory(self) -> Memory:
        """That of the task."""
        return self.task.memory()

    def loss(self, params: Params, frozen: Params, batch: Raw, key: Key, train: bool) -> tuple[Array, Metrics]:
        """(1); frozen['base'] are the parameters of the task."""
        whole = lora.merged(frozen[BASE], params, self.scale)
        return self.task.loss(whole, frozen, batch, key, train)

    def project(self, params: Params) -> Params:
        """The factors as they are."""
        return params


def adapted(task: Any, config: Mapping[str, Any]) -> Any:
    """What a page trains: its task, or the factors that its section `lora` asks for.

    Raises:
      ConfigError: what `LowRank` refuses.
    """
    if "lora" not in config:
        return task
    return LowRank(task, **{name: value for name, value in config["lora"].items() if name in OPTIONS})


def _in_frozen(cond: Any, path: str) -> bool:
    """Whether a parameter is of a conditioner, or of a part of one, that takes no gradient."""
    first, *names = path.split("/")
    if first != "cond":
        return False
    for name in names:
        if getattr(cond, "frozen", False):
            return True
        parts = {f"parts_{i}": part for i, part in enumerate(getattr(cond, "parts", ()))}
        cond = parts.get(name, getattr(cond, name, None))
    return False
