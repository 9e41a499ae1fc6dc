"""Post-hoc EMA: any power-function average of a run, made afterwards of the snapshots of a few (EDM2, 2312.02696 sec. 3.2).

The power average of exponent gamma at time T is the mean of the parameters at times tau <= T under the profile

    p(tau) = (gamma + 1) tau^gamma / T^(gamma + 1)                                    (1)

Snapshots have profiles p_1 ... p_n; the combination closest to a wanted p in L2 solves

    A x = b,   A_ij = <p_i, p_j>,   b_i = <p_i, p>                                    (2)
    <p, q>  = (g + 1) (h + 1) min(T, S)^(g + h + 1) / ((g + h + 1) T^(g + 1) S^(h + 1))      (3)

for exponents g, h and times T, S; x is then scaled to sum 1. The system of a whole run is badly conditioned: all this is float64.
"""
from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.train.arrays import arrays_handler, arrays_wanted
from diffusion_jax.train.ema import Power, Profile, exponent
from diffusion_jax.train.log import writing
from diffusion_jax.types import Params, TrainState


def correlation(time: np.ndarray, gamma: np.ndarray, other_time: np.ndarray, other_gamma: np.ndarray) -> np.ndarray:
    """(3) with NumPy's broadcasting; float64."""
    t, g, s, h = (np.asarray(value, np.float64) for value in (time, gamma, other_time, other_gamma))
    shrink = (g + h + 1) * np.log(np.minimum(t, s)) - (g + 1) * np.log(t) - (h + 1) * np.log(s)
    return (g + 1) * (h + 1) / (g + h + 1) * np.exp(shrink)


def coefficients(
    times: Sequence[float], stds: Sequence[float], to_times: Sequence[float], to_stds: Sequence[float]
) -> np.ndarray:
    """x of (2) for each wanted average.

    Args:
      times, stds: of the snapshots, [n] each, in any unit of time but 0.
      to_times, to_stds: of the wanted averages, [m] each.

    Returns:
      [n, m] float64; columns sum to 1.

    Raises:
      ConfigError: two snapshots are of the same time and std.
    """
    if len(set(zip(times, stds, strict=True))) < len(times):
        raise ConfigError("two of the snapshots are of the same time and std: leave one out")
    t, g = np.asarray(times, np.float64), np.array([exponent(std) for std in stds])
    s, h = np.asarray(to_times, np.float64), np.array([exponent(std) for std in to_stds])
    solved = np.linalg.solve(correlation(t[:, None], g[:, None], t, g), correlation(t[:, None], g[:, None], s, h))
    return solved / solved.sum(axis=0)


def response(times: Sequence[float], stds: Sequence[float], steps: int) -> np.ndarray:
    """The profiles (1) at tau = 0 ... steps - 1, scaled to sum 1: [n, steps] float64, for looking at."""
    t, g = np.asarray(times, np.float64)[:, None], np.array([exponent(std) for std in stds])[:, None]
    tau = np.arange(steps)[None] / t
    profile = np.where(tau <= 1, tau**g, 0)
    return profile / profile.sum(axis=1, keepdims=True)


def combine(snapshots: Iterable[Params], weights: np.ndarray) -> list[Params]:
    """The weighted sums of snapshots, one at a time in memory, in float32.

    Args:
      snapshots: n trees of arrays, in order.
      weights: [n, m] float64.

    Returns:
      m trees.
    """
    totals: list[Params] = []
    for tree, row in zip(snapshots, weights, strict=True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float32), tree)
        parts = [jax.tree.map(lambda x, w=w: np.float32(w) * x, wide) for w in row]
        totals = [jax.tree.map(np.add, total, part) for total, part in zip(totals, parts, strict=True)] if totals else parts
    return totals


def stds_of(profiles: Mapping[str, Profile], every: int, averages: Sequence[str] | None = None,
            dtype: str = "") -> dict[str, float]:
    """{name: std} of the averages that `Snapshots` keeps; arguments and errors are its own."""
    powers = {name: profile.std for name, profile in profiles.items() if isinstance(profile, Power)}
    for name in averages or ():
        if name not in powers:
            raise unknown("power average", name, powers)
    stds = {name: std for name, std in powers.items() if averages is None or name in averages}
    if not stds or every < 1:
        raise ConfigError(f"snapshots are of power averages, every so many updates; got {list(profiles)} and every={every}")
    return stds


class Snapshots:
    """The snapshots of a run's power averages, in its folder 'snapshots'. A context manager.

    Args:
      workdir: the run's folder.
      config: the run's, stored with every snapshot.
      profiles: the run's averages by name; those that are no `Power` are left out.
      every: updates between snapshots.
      averages: the names of those to keep, at best two; None for all.
      dtype: what they are stored in. float16 halves the size; its rounding grows in the sums, whose weights alternate.

    Raises:
      ConfigError: no average is a `Power`, every < 1.
    """

    def __init__(self, workdir: str | Path, config: Any, profiles: Mapping[str, Profile], every: int,
                 averages: Sequence[str] | None = None, dtype: str = "float32"):
        import orbax.checkpoint as ocp

        self.stds = stds_of(profiles, every, averages)
        self.every, self._config, self._dtype, self._folder = every, config, dtype, _folder(workdir)
        handlers = {"ema": arrays_handler(), "config": ocp.JsonCheckpointHandler(), "stds": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self._folder, item_handlers=handlers)

    def offer(self, step: int, state: TrainState, last: bool = False) -> None:
        """Stores the averages if they are due at this step, or if it is the last; a step that is there already is left alone.

        Returns when they are on disk, so that no checkpoint is ahead of its snapshot.

        Raises:
          ConfigError: they could not be written.
        """
        import orbax.checkpoint as ocp

        if step in self._manager.all_steps() or not (last or step % self.every == 0):
            return
        averages = {name: jax.tree.map(lambda x: x.astype(self._dtype), state.ema[name]) for name in self.stds}
        with writing("a snapshot", self._folder):
            self._manager.save(step, force=True, args=ocp.args.Composite(
                ema=ocp.args.PyTreeSave(averages), config=ocp.args.JsonSave(self._config), stds=ocp.args.JsonSave(self.stds)))
            self._manager.wait_until_finished()

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(self, *exception: object) -> None:
        with writing("a snapshot", self._folder):
            self._manager.close()


def reconstruct(workdir: str | Path, stds: Sequence[float], step: int | None = None) -> tuple[dict[str, Any], int, list[Params]]:
    """Averages of a run, made of its snapshots.

    Args:
      workdir: a run's folder.
      stds: relative standard deviations of the wanted averages.
      step: the update at which they end, one of which there is a snapshot; the last one's by default.

    Returns:
      (the run's config, the step, the averages).

    Raises:
      ConfigError: there are no snapshots, none of `step` (the nearest are named), or a damaged one; a std that no average has.
    """
    import orbax.checkpoint as ocp

    if not _folder(workdir).is_dir():
        raise ConfigError(f"{workdir} holds no snapshots: train with config.snapshots")
    for std in stds:
        Power(std)
    with ocp.CheckpointManager(_folder(workdir)) as manager:
        there = sorted(manager.all_steps())
        if not there:
            raise ConfigError(f"{workdir} holds no snapshots yet: train to a multiple of config.snapshots.every")
        end = there[-1] if step is None else step
        if end not in there:
            # What came after the last snapshot before it is in no average: (2) would give that one's under another name.
            raise _none_of(end, there)
        steps = there[: there.index(end) + 1]
        with _reading(workdir, steps[-1]):
            last = manager.restore(steps[-1], args=ocp.args.Composite(config=ocp.args.JsonRestore(), stds=ocp.args.JsonRestore()))
        names = sorted(last["stds"])

        def trees() -> Iterable[Params]:
            for number in steps:
                with _reading(workdir, number):
                    stored = _averages(_folder(workdir) / str(number) / "ema")
                yield from (stored[name] for name in names)

        at, wide = [number for number in steps for _ in names], [last["stds"][name] for _ in steps for name in names]
        return last["config"], end, combine(trees(), coefficients(at, wide, [end] * len(stds), stds))


def _none_of(step: int, steps: Sequence[int]) -> ConfigError:
    """The error for a step of which there is no snapshot."""
    index = bisect.bisect(steps, step)
    nearest = [str(near) for near in steps[max(index - 1, 0): index + 1]]
    return ConfigError(f"there is no snapshot of step {step}: the nearest {'are' if len(nearest) > 1 else 'is'} "
                       f"{' and '.join(nearest)}, give one of the {len(steps)} as --step")


@contextlib.contextmanager
def _reading(workdir: str | Path, number: int) -> Iterator[None]:
    """Whatever a broken file makes a reader raise, as one line."""
    try:
        yield
    except Exception as error:
        what = str(error).strip().partition("\n")[0][:200]
        raise ConfigError(f"snapshot {number} of {workdir} does not read ({what}): move it away to go on") from None


def _averages(folder: Path) -> dict[str, Params]:
    """The averages of one snapshot on one device, on however many they were when it was taken."""
    from etils import epath

    path, handler = epath.Path(folder), arrays_handler()
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), handler.metadata(path).tree)
    return handler.restore(path, args=arrays_wanted(wanted))


def _folder(workdir: str | Path) -> Path:
    return Path(workdir).absolute() / "snapshots"
