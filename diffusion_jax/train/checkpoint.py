"""Checkpoints: atomic, asynchronous, checked, and enough on their own to sample from.

    workdir/checkpoints/<step>/state     the TrainState (orbax, OCDBT)
                               config    the run's config, JSON
                               meta      step, examples seen, versions of the packages, digests of the arrays

A step's folder appears by one rename when it is complete, so a kill leaves the previous ones. Orbax notices a truncated file, but
not a flipped bit in an array, hence the digests (train/digest.py).
"""
from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.train import powersgd
from diffusion_jax.train.digest import check, digests, parts
from diffusion_jax.train.log import first_line, writing
from diffusion_jax.train.state import migrated, plain, task_of
from diffusion_jax.types import Params, Task, TrainState

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "diffusion_jax")
DIFFERENCES = 3                                            # how many differing keys an error names
ABSENT = object()
SAVE_CONCURRENT_GB = 1
"""How much is on its way to the disk at a time: what saving takes beside the arrays themselves."""


class Checkpoints:
    """The checkpoints of one run. A context manager.

    Args:
      workdir: the run's folder, made when missing.
      config: the run's config, stored with every checkpoint.
      every: updates between checkpoints, see `due`.
      keep: how many of the latest stay.
      keep_every: those at multiples of this stay for ever (a multiple of `every`), None for none.
      may_change: top-level keys of the config in which a resumed run may differ from the stored one.

    Raises:
      ConfigError: the folder holds another config; impossible numbers.
    """

    def __init__(self, workdir: str | os.PathLike[str], config: Any, every: int = 1000, keep: int = 3,
                 keep_every: int | None = None, may_change: Iterable[str] = ()):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        if every < 1 or keep < 1 or (keep_every is not None and (keep_every < 1 or keep_every % every)):
            raise ConfigError(f"checkpoints: every and keep are at least 1 and keep_every is a multiple of every; "
                              f"got every={every}, keep={keep}, keep_every={keep_every}")
        self.folder = Path(os.path.abspath(workdir)) / "checkpoints"
        self.every = every
        self._config = plain(config)
        _same_config(self.folder, self._config, frozenset(may_change))
        stay = [policies.LatestN(keep)] + ([policies.EveryNSteps(keep_every)] if keep_every else [])
        handlers = {"state": ocp.StandardCheckpointHandler(save_concurrent_gb=SAVE_CONCURRENT_GB),
                    "config": ocp.JsonCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, item_handlers=handlers, options=ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(stay), cleanup_tmp_directories=True))

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, None when there is none."""
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        """Whether `step` is a multiple of `every`."""
        return step % self.every == 0

    def save(self, state: TrainState, examples: int = 0) -> None:
        """Stores the state under its step. Returns when it may be donated; the writing goes on in the background.

        Args:
          state: saved whole.
          examples: examples seen so far, for the record.

        Raises:
          ConfigError: there is a checkpoint of this step already, or this one or the one before could not be written.
        """
        import orbax.checkpoint as ocp

        step = int(state.step)
        if step in self._manager.all_steps():
            raise ConfigError(f"{self.folder} holds a checkpoint of step {step} already: choose another folder")
        numbers = {name: int(value) for name, value in digests(parts(state)).items()}
        meta = {"step": step, "examples": examples, "versions": versions(PACKAGES), "digests": numbers}
        with self._writing():
            self._manager.save(step, force=True, args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(self._config), meta=ocp.args.JsonSave(meta)))

    def restore_latest(self, abstract: TrainState) -> TrainState | None:
        """The newest checkpoint that reads, None when there is none at all.

        One that does not read is set aside (its folder renamed to '<step>.unreadable') once an older one has been read, so that
        the run can go on past its step; nothing is ever deleted.

        Args:
          abstract: the state as ShapeDtypeStructs with shardings, of any mesh.

        Raises:
          ConfigError: there are checkpoints, but none reads.
        """
        failed: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            state, failed[step] = self._restore(step, abstract)
            if state is not None:
                for bad in sorted(failed.keys() - {step}):
                    self._set_aside(bad)
                    logging.warning("checkpoint of step %d does not read (%s): set aside, going on from step %d",
                                    bad, failed[bad], step)
                return state
        if failed:
            raise ConfigError(f"none of the checkpoints in {self.folder} reads (steps {', '.join(map(str, sorted(failed)))}; "
                              f"the newest: {failed[max(failed)]}): choose another workdir to start anew")
        return None

    def wait(self) -> None:
        """Returns when everything saved is on disk; `ConfigError` where it could not be written."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of the folder."""
        with self._writing():
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        def left() -> str:
            good = _steps(self.folder)
            return f"; the last good one is of step {good[-1]}" if good else "; there is no other"

        return writing("a checkpoint", self.folder, left)

    def _restore(self, step: int, abstract: TrainState) -> tuple[TrainState | None, str]:
        """(state, '') or (None, reason), the same on all processes."""
        import orbax.checkpoint as ocp
        from etils import epath
        from jax.experimental import multihost_utils

        state, reason = None, ""
        try:
            path = epath.Path(self.folder / str(step) / "state")
            wanted = powersgd.as_stored(abstract, lambda: ocp.StandardCheckpointHandler().metadata(path).tree)
            found = self._manager.restore(step, args=ocp.args.Composite(
                state=ocp.args.StandardRestore(wanted), meta=ocp.args.JsonRestore()))
            check(parts(found["state"]), found["meta"])
            state = powersgd.spread(found["state"], abstract)
        except Exception as error:                         # whatever a broken file makes a reader raise
            state, reason = None, first_line(error)
        if jax.process_count() > 1 and not multihost_utils.process_allgather(np.array(state is not None)).all():
            state, reason = None, reason or "another process could not read it"
        return state, reason

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            names = [f"{step}.unreadable"] + [f"{step}.unreadable-{i}" for i in range(2, 100)]
            target = next(path for path in map(self.folder.joinpath, names) if not path.exists())
            (self.folder / str(step)).rename(target)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("diffusion_jax: checkpoint set aside")
        self._manager.reload()


def available(folder: str | os.PathLike[str]) -> list[int]:
    """The steps of the checkpoints in a run's folder (or its folder 'checkpoints'), ascending."""
    return _steps(_root(folder))


class Weights(NamedTuple):
    """One set of weights of a checkpoint.

    Attributes:
      params: the arrays.
      name: 'params', or the name of an average.
      step: of the checkpoint.
      digest: of the arrays, train/digest.py.
    """

    params: Params
    name: str
    step: int
    digest: int


def load(folder: str | os.PathLike[str], which: str = "ema", step: int | None = None,
         sharding: jax.sharding.Sharding | None = None) -> tuple[Any, Task, Params]:
    """Config, task and one set of weights from a checkpoint folder, which alone is enough to sample.

    The config is input from elsewhere: it is JSON, and `build` refuses foreign symbols.

    Args:
      folder, which, step, sharding: see `weights`.

    Returns:
      (config as ConfigDict, task, params).

    Raises:
      ConfigError: what `weights` and `build` refuse.
    """
    import ml_collections

    root, step = find(folder, step)
    config = config_of(root, step)
    return ml_collections.ConfigDict(config), task_of(config), weights(root, which, step, sharding).params


def weights(folder: str | os.PathLike[str], which: str = "ema", step: int | None = None,
            sharding: jax.sharding.Sharding | None = None) -> Weights:
    """One set of weights from a checkpoint folder; nothing else of it is read.

    Args:
      folder: a run's folder, its folder 'checkpoints', or the folder of one step.
      which: 'params', the name of an average, or 'ema' for the only one; without averages these are the parameters.
      step: which checkpoint, the newest by default.
      sharding: where every array goes, one local device by default.

    Raises:
      ConfigError: no such folder, step or weights (the message names what there is), or a damaged checkpoint.
    """
    import orbax.checkpoint as ocp
    from etils import epath

    root, step = find(folder, step)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    path = epath.Path(root / str(step) / "state")
    handler = ocp.PyTreeCheckpointHandler()
    try:
        meta = _json(root, step, "meta")
        tree = handler.metadata(path).tree
    except Exception as error:
        raise _damaged(root, step, error) from None
    name = _weights(which, sorted(tree.get("ema") or {}), root / str(step))
    part = tree["params"] if name == "params" else tree["ema"][name]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), part)
    item = {"params": shapes} if name == "params" else {"ema": {name: shapes}}
    key = name if name == "params" else f"ema/{name}"
    try:
        restored = handler.restore(path, args=ocp.args.PyTreeRestore(
            item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True))
        params = restored["params"] if name == "params" else restored["ema"][name]
        check({key: params}, meta)
    except Exception as error:
        raise _damaged(root, step, error) from None
    return Weights(params, name, step, meta["digests"][key])


def config_of(folder: str | os.PathLike[str], step: int | None = None) -> dict[str, Any]:
    """The config alone of a checkpoint folder; arguments and errors are those of `load`."""
    root, step = find(folder, step)
    try:
        return migrated(_json(root, step, "config"))
    except Exception as error:
        raise _damaged(root, step, error) from None


@functools.cache
def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The versions of packages, as checkpoints and files of pictures state them.

    Cached, because looking reads files and a folder of pictures states them in each.
    """
    installed = {}
    for package in packages:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:    # run from a source tree
            installed[package] = "not installed"
    return installed


def _root(folder: str | os.PathLike[str]) -> Path:
    """The folder that holds the steps."""
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}: give the workdir of a run")
    return folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder


def _steps(root: Path) -> list[int]:
    """The finished checkpoints in a folder, ascending; none where there is no folder."""
    inside = root.iterdir() if root.is_dir() else ()
    return sorted(int(path.name) for path in inside if path.name.isdigit() and (path / "state").is_dir())


def find(folder: str | os.PathLike[str], step: int | None = None) -> tuple[Path, int]:
    """(folder of the checkpoints, step) of one that is there, the newest by default.

    Raises:
      ConfigError: there is none; the message names what there is.
    """
    root = _root(folder)
    if root.name.isdigit() and (root / "state").is_dir():
        root, step = root.parent, int(root.name) if step is None else step
    steps = _steps(root)
    if not steps:
        raise ConfigError(f"{root} holds no checkpoint; it has: {', '.join(sorted(p.name for p in root.iterdir())) or 'nothing'}")
    if step is not None and step not in steps:
        raise ConfigError(f"{root} has no checkpoint of step {step}; it has: {', '.join(map(str, steps))}")
    return root, steps[-1] if step is None else step


def _weights(which: str, averages: list[str], folder: Path) -> str:
    """The name of the weights that `which` means."""
    if which == "ema" and which not in averages:
        if not averages:
            return "params"
        if len(averages) != 1:
            raise ConfigError(f"which='ema' names the only average, but {folder} has: {', '.join(['params', *averages])}")
        return averages[0]
    if which not in ("params", *averages):
        raise unknown(f"weights in {folder}", which, ["params", *averages])
    return which


def _json(root: Path, step: int, item: str) -> Any:
    import orbax.checkpoint as ocp
    from etils import epath

    return ocp.JsonCheckpointHandler().restore(epath.Path(root / str(step) / item), args=ocp.args.JsonRestore())


def _damaged(root: Path, step: int, error: Exception) -> ConfigError:
    others = [str(other) for other in _steps(root) if other != step]
    return ConfigError(f"checkpoint of step {step} in {root} does not read ({first_line(error)}); "
                       f"{'other steps: ' + ', '.join(others) if others else 'there is no other'}")


def _same_config(root: Path, asked: dict[str, Any], may_change: frozenset[str]) -> None:
    """Raises ConfigError where the newest stored config that reads differs from `asked`."""
    for step in reversed(_steps(root)):
        try:
            stored = migrated(_json(root, step, "config"))
        except Exception as error:
            logging.warning("config of step %d in %s does not read (%s): looking at an older one", step, root, first_line(error))
            continue
        differences = _differences({k: v for k, v in stored.items() if k not in may_change},
                                   {k: v for k, v in asked.items() if k not in may_change})
        if differences:
            more = f" and {len(differences) - DIFFERENCES} more" if len(differences) > DIFFERENCES else ""
            raise ConfigError(f"{root.parent} holds a run with another config ({'; '.join(differences[:DIFFERENCES])}{more}): "
                              "choose another workdir, or the same config to resume")
        return


def _differences(stored: Any, asked: Any, path: str = "") -> list[str]:
    """'task.depth: 4 in the folder, 6 asked' for every leaf that differs."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        return [line for key in sorted(stored.keys() | asked.keys())
                for line in _differences(stored.get(key, ABSENT), asked.get(key, ABSENT), f"{path}.{key}" if path else key)]
    return [] if stored == asked else [f"{path}: {_shown(stored)} in the folder, {_shown(asked)} asked"]


def _shown(value: Any) -> str:
    return "absent" if value is ABSENT else json.dumps(value)[:60]
