"""Checkpoints: atomic, asynchronous, checked, and enough on their own to sample from.

    workdir/checkpoints/<step>/state     the TrainState (orbax, OCDBT)
                               config    the run's config, JSON
                               meta      step, examples seen, versions of the packages, digests of the arrays, and the data

A step's folder appears by one rename when it is complete, so a kill leaves the previous ones. Orbax notices a truncated file, but
not a flipped bit in an array, hence the digests (train/digest.py).
"""
from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.train import powersgd, resume
from diffusion_jax.train.arrays import SAVE_CONCURRENT_GB, arrays_handler, arrays_wanted, largest
from diffusion_jax.train.digest import check, parts, record
from diffusion_jax.train.log import first_line, writing
from diffusion_jax.train.state import migrated, plain, stored, task_of
from diffusion_jax.train.steps import newest, root_of, steps_in
from diffusion_jax.types import Params, Task, TrainState

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "diffusion_jax")


class Checkpoints:
    """The checkpoints of one run. A context manager.

    Args:
      workdir: the run's folder, made when missing.
      config: the run's config, stored with every checkpoint.
      every: updates between checkpoints, see `due`.
      keep: how many of the latest stay.
      keep_every: those at multiples of this stay for ever (a multiple of `every`), None for none.
      may_change: top-level keys of the config in which a resumed run may differ from the stored one.
      data: what tells the run's data from others (data/fingerprint.py), stored too; None where nobody knows.

    Raises:
      ConfigError: the folder holds another config; impossible numbers.
    """

    def __init__(self, workdir: str | os.PathLike[str], config: Any, every: int = 1000, keep: int = 3,
                 keep_every: int | None = None, may_change: Iterable[str] = (), data: Mapping[str, Any] | None = None):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        if every < 1 or keep < 1 or (keep_every is not None and (keep_every < 1 or keep_every % every)):
            raise ConfigError(f"checkpoints: every and keep are at least 1 and keep_every is a multiple of every; "
                              f"got every={every}, keep={keep}, keep_every={keep_every}")
        self.folder = Path(os.path.abspath(workdir)) / "checkpoints"
        self.every = every
        self._config, self._data = plain(config), data
        check_config(workdir, self._config, may_change)
        stay = [policies.LatestN(keep)] + ([policies.EveryNSteps(keep_every)] if keep_every else [])
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(stay), cleanup_tmp_directories=True)
        self._concurrent_gb = SAVE_CONCURRENT_GB
        self._manager = self._managed()

    def _managed(self) -> Any:
        """Orbax's manager of the folder."""
        import orbax.checkpoint as ocp

        handlers = {"state": arrays_handler(self._concurrent_gb),
                    "config": ocp.JsonCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(self.folder, item_handlers=handlers, options=self._options)

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
        meta = {"step": step, "examples": examples, "versions": versions(PACKAGES)} | record(parts(state))
        if self._data is not None:
            meta["data"] = dict(self._data)
        needed = largest(state) // 10**9 + 1
        if needed > self._concurrent_gb:                   # orbax refuses an array of more than what it writes at a time
            self._concurrent_gb = needed
            self.close()
            self._manager = self._managed()
        with self._writing():
            self._manager.save(step, force=True, args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state), config=ocp.args.JsonSave(self._config), meta=ocp.args.JsonSave(meta)))

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
            good = steps_in(self.folder)
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
            wanted = powersgd.as_stored(abstract, lambda: arrays_handler().metadata(path).tree)
            found = self._manager.restore(step, args=ocp.args.Composite(
                state=arrays_wanted(wanted), meta=ocp.args.JsonRestore()))
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
    return steps_in(root_of(folder))


class Weights(NamedTuple):
    """One set of weights of a checkpoint.

    Attributes:
      params: the arrays.
      name: 'params', or the name of an average.
      step: of the checkpoint.
      digest: of the arrays, train/digest.py.
      classes: the names of the classes of the data that they were trained on; None where the checkpoint has none.
    """

    params: Params
    name: str
    step: int
    digest: int
    classes: tuple[str, ...] | None = None


def load(folder: str | os.PathLike[str], which: str = "ema", step: int | None = None,
         sharding: jax.sharding.Sharding | None = None) -> tuple[Any, Task, Params]:
    """Config, task and one set of weights from a checkpoint folder, which alone is enough to sample.

    The config is input from elsewhere: it is JSON, of which `build` makes no more than parts of pages.

    Args:
      folder, which, step, sharding: see `weights`.

    Returns:
      (config as ConfigDict, task, params).

    Raises:
      ConfigError: what `weights` and `build` refuse.
    """
    import ml_collections

    def read(root: Path, step: int) -> tuple[Any, Task, Params]:
        config = config_of(root, step)
        return ml_collections.ConfigDict(config), task_of(config), weights(root, which, step, sharding).params

    return newest(folder, step, read)


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
    return newest(folder, step, functools.partial(_read, which, sharding))


def _read(which: str, sharding: jax.sharding.Sharding | None, root: Path, step: int) -> Weights:
    """`weights` of one step."""
    from etils import epath

    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    path = epath.Path(root / str(step) / "state")
    handler = arrays_handler()
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
        restored = handler.restore(path, args=arrays_wanted(item, partial_restore=True))
        params = restored["params"] if name == "params" else restored["ema"][name]
        check({key: params}, meta)
    except Exception as error:
        raise _damaged(root, step, error) from None
    # No network computes in float16 weights: they are a way to store them (runs/release.py).
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32) if leaf.dtype == np.float16 else leaf, params)
    return Weights(params, name, step, meta["digests"][key], _classes(meta.get("data")))


def _classes(data: Any) -> tuple[str, ...] | None:
    """The names of the classes in what a checkpoint says of its data, which is input from elsewhere."""
    names = data.get("classes") if isinstance(data, Mapping) else None
    texts = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return tuple(names) if names and texts else None


def config_of(folder: str | os.PathLike[str], step: int | None = None) -> dict[str, Any]:
    """The config alone of a checkpoint folder; arguments and errors are those of `load`."""

    def read(root: Path, step: int) -> dict[str, Any]:
        try:
            config = _json(root, step, "config")
        except Exception as error:
            raise _damaged(root, step, error) from None
        return stored(config, root / str(step))

    return newest(folder, step, read)


def digest_of(folder: str | os.PathLike[str]) -> int:
    """The digest of the weights that `weights` gives by default, without reading them."""

    def read(root: Path, step: int) -> int:
        try:
            numbers = _json(root, step, "meta")["digests"]
        except Exception as error:
            raise _damaged(root, step, error) from None
        averages = sorted(name.removeprefix("ema/") for name in numbers if name.startswith("ema/"))
        name = _weights("ema", averages, root / str(step))
        return numbers[name if name == "params" else f"ema/{name}"]

    return newest(folder, None, read)


def data_of(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What a run's newest checkpoint says of its data (data/fingerprint.py); None where it says nothing, or there is none."""
    root = Path(os.path.abspath(folder)) / "checkpoints"
    for step in reversed(steps_in(root)):
        with contextlib.suppress(Exception):               # damaged: the one before it says the same
            return _json(root, step, "meta").get("data")
    return None


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
    others = [str(other) for other in steps_in(root) if other != step]
    return ConfigError(f"checkpoint of step {step} in {root} does not read ({first_line(error)}); "
                       f"{'other steps: ' + ', '.join(others) if others else 'there is no other'}")


def check_config(workdir: str | os.PathLike[str], asked: Any, may_change: Iterable[str] = ()) -> None:
    """Raises ConfigError where the newest stored config of a run that reads differs from `asked` in more than may change."""
    root = Path(os.path.abspath(workdir)) / "checkpoints"
    for step in reversed(steps_in(root)):
        try:
            before = dict(migrated(_json(root, step, "config")))
        except Exception as error:
            logging.warning("config of step %d in %s does not read (%s): looking at an older one", step, root, first_line(error))
            continue
        return resume.check_config(before, plain(asked), frozenset(may_change), root.parent)
