"""Batches as a pure function of the step, and a stream of them onto the devices.

Training example number p (counted from 0 over the whole run) is

    epoch, offset = divmod(p, N),      record = order(seed, epoch)[offset]                    (1)
    augmented with a generator that starts at (seed, p),                                      (2)

and batch k holds the examples k B .. (k + 1) B - 1, of which process i of n takes the i-th contiguous n-th. So a restart needs
nothing but the step, and the global batch does not depend on how many processes share it.

Both (1) and (2) use the counter-based Philox generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011):
the key is (seed, purpose), the highest word of the counter the epoch or p, so the streams never meet. An order sorts raw
Philox words, because NumPy promises those never to change, and `Generator.permutation` not.
"""
from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from diffusion_jax.build import ConfigError, number
from diffusion_jax.data.image import Decode, to_unit
from diffusion_jax.data.source import LARGEST_LABEL, Record, Source, decoded, place

ORDER, AUGMENT = 0, 1
ENDLESS = 2**62
RETRIES = (0.1, 1.0, 10.0)  # seconds before a record is asked for once more
AHEAD = 2  # batches on the devices before they are asked for: one transfer hides behind a step, one more evens out jitter

_to_unit = jax.jit(to_unit)


def _philox(seed: int, purpose: int, number: int) -> np.random.Philox:
    key = np.array([seed % 2**64, purpose], np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, 0, number], np.uint64))


@functools.lru_cache(maxsize=8)  # two epochs of a few sources
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of an epoch, int64 [size]."""
    order = np.argsort(_philox(seed, ORDER, epoch).random_raw(size), kind="stable")
    order.flags.writeable = False
    return order


def _generators(seed: int) -> Callable[[int], np.random.Generator]:
    """(2): position -> its generator. One object that is moved along, which costs a seventh of a new one each time."""
    bits = _philox(seed, AUGMENT, 0)
    generator, state = np.random.Generator(bits), bits.state

    def at(position: int) -> np.random.Generator:
        state["state"]["counter"][3] = position
        bits.state = state
        return generator

    return at


@dataclass(frozen=True)
class Batches:
    """Endless batches by step: `batches[step]` is this process's part of the global batch of that step.

    Attributes:
      source: where the records come from.
      decode: what makes arrays of them.
      batch: the size of the global batch.
      seed: of order and augmentation.
      process_index: which part of the batch is ours.
      process_count: how many parts there are.
      shuffle: False takes the records in their order, again and again: for evaluation.

    Raises:
      ConfigError: the batch does not divide among the processes, or the source is empty; of a batch: a record that does not
        read or decode, or does not fit those beside it.

    Example:
      >>> from diffusion_jax.data.digits import Digits
      >>> Batches(Digits('test'), Decode(8, channels=1), batch=4, seed=0)[100]['image'].shape
      (4, 8, 8, 1)
    """

    source: Source
    decode: Decode
    batch: int
    seed: int
    process_index: int = 0
    process_count: int = 1
    shuffle: bool = True

    def __post_init__(self):
        number("batch", self.batch, integer=True)
        if self.batch < 1 or self.batch % self.process_count:
            raise ConfigError(f"batch {self.batch} does not divide among {self.process_count} processes; choose a multiple")
        if not 0 <= self.process_index < self.process_count:
            raise ConfigError(f"process {self.process_index} of {self.process_count} does not exist; count from 0")
        if len(self.source) == 0:
            raise ConfigError(f"{self.source} holds no records; check its path and split")

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process gets: it opens the files itself."""
        fresh = replace(self.source), replace(self.decode)
        return Batches, (*fresh, self.batch, self.seed, self.process_index, self.process_count, self.shuffle)

    def __getitem__(self, step: int) -> dict[str, Any]:
        """Arrays [batch // process_count, ...] and, where there are captions, a list of str."""
        local = self.batch // self.process_count
        first = step * self.batch + self.process_index * local
        generator = _generators(self.seed) if self.decode.random else lambda position: None
        rows = [self._index(p) for p in range(first, first + local)]
        if hasattr(self.decode, "batch"):
            pairs = ((self._record(row), generator(p)) for p, row in enumerate(rows, first))
            batch = self.decode.batch(pairs, local)
        else:
            records = _Asked(self)
            batch = self._stacked(rows, [decoded(records, self.decode, row, generator(p)) for p, row in enumerate(rows, first)])
        self._check(rows, batch)
        return batch

    def _stacked(self, rows: list[int], examples: list[Record]) -> dict[str, Any]:
        """Examples as arrays [n, ...].

        Raises:
          ConfigError: they differ in what they have, or in size.
        """
        first = _forms(examples[0])
        other = next((i for i, example in enumerate(examples) if _forms(example) != first), None)
        if other is not None:
            here, there = (place(self.source, rows[i]) for i in (other, 0))
            raise ConfigError(f"{here}: is {_spelt(examples[other])}, where {there} is {_spelt(examples[0])}: records of a batch "
                              "must be alike")
        return {key: _stack([example[key] for example in examples]) for key in examples[0]}

    def _check(self, rows: list[int], batch: dict[str, Any]) -> None:
        """Refuses what the train step would take for an image or a class: numbers that are not finite, labels out of range."""
        image, label = batch["image"], batch.get("label")
        # A sum is finite where all are, and costs a tenth of looking at each.
        if np.issubdtype(image.dtype, np.floating) and not np.isfinite(image.sum(dtype=np.float64)):
            bad = np.flatnonzero(~np.isfinite(image.reshape(len(image), -1)).all(1))
            if len(bad):
                raise ConfigError(f"{place(self.source, rows[bad[0]])}: has numbers that are not finite; mend or remove it")
        if label is None or not np.issubdtype(label.dtype, np.integer):
            return
        names = self.source.names
        wrong = (label < 0) | (label > (len(names) - 1 if names else LARGEST_LABEL))
        outside = np.flatnonzero(wrong.reshape(len(label), -1).any(1))
        if len(outside):
            classes = f"the {len(names)} classes" if names else f"0 ... {LARGEST_LABEL}"
            raise ConfigError(f"{place(self.source, rows[outside[0]])}: label {label[outside[0]]} is none of {classes}; mend it")

    def _record(self, index: int) -> Record:
        """A record; what a disk or a network refuses once is asked for again, `RETRIES` times.

        Raises:
          ConfigError: it was refused each time.
        """
        for pause in RETRIES:
            try:
                return self.source[index]
            except OSError as error:
                logging.warning("record %d of %s: %s; trying again in %.1f s", index, self.source, error, pause)
                time.sleep(pause)
        try:
            return self.source[index]
        except OSError as error:
            raise ConfigError(f"record {index} of {self.source} does not read, tried {len(RETRIES) + 1} times: {error}") from None

    def _index(self, position: int) -> int:
        """(1): the record at a position."""
        epoch, offset = divmod(position, len(self.source))
        return int(_order(len(self.source), self.seed, epoch)[offset]) if self.shuffle else offset


class _Asked:
    """The records of a source, asked for again where a disk refuses them once."""

    def __init__(self, batches: Batches):
        self._batches = batches

    def __getitem__(self, i: int) -> Record:
        return self._batches._record(i)

    def place(self, i: int) -> str:
        return place(self._batches.source, i)


def _forms(example: Record) -> dict[str, tuple[Any, Any]]:
    """The types and shapes of what an example has."""
    return {key: (getattr(value, "dtype", type(value)), getattr(value, "shape", ())) for key, value in example.items()}


def _spelt(example: Record) -> str:
    """'image uint8 [8, 8, 3], label int32 []'."""
    return ", ".join(f"{key} {getattr(kind, '__name__', kind)} {list(shape)}" for key, (kind, shape) in _forms(example).items())


def _stack(values: list[Any]) -> np.ndarray | list[str]:
    return values if isinstance(values[0], str) else np.stack(values)


def stream(
    batches: Batches, start: int, sharding: jax.sharding.Sharding, threads: int = 2, buffer: int = 4, workers: int = 0
) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    """Endless (step, batch) from step `start` on, read ahead and put on the devices ahead of use.

    'image' arrives as float32 in [-1, 1], converted on the device, where a byte per pixel has been sent; captions stay behind.
    To stop, drop the iterator or close() it. What a reading thread or process raises is raised here.

    Args:
      batches: what to read; its parts must lie in the order of the processes' devices.
      start: the first step.
      sharding: of the leading axis of every array, for example NamedSharding(mesh, PartitionSpec('data')).
      threads: how many read at a time, in each process that reads.
      buffer: how many batches they may be ahead.
      workers: processes that read, each every workers-th batch; 0 reads in this one. The batches are the same. A reading thread
        holds Python's lock while it decodes, so where a step is short and decoding long only processes use more cores.

    Raises:
      ConfigError: workers, and a source that other processes cannot be given.
    """
    import grain

    read_ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    steps = grain.MapDataset.range(start, ENDLESS).map(lambda step: (int(step), batches[int(step)])).to_iter_dataset(read_ahead)
    if workers:
        _check_sendable(batches)
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()                         # grain reads its own, which tests and notebooks do not parse
        steps = steps.mp_prefetch(grain.MultiprocessingOptions(workers, buffer), _begin_worker)
    host = iter(steps)
    ready: deque[tuple[int, dict[str, jax.Array]]] = deque()
    try:
        for step, batch in host:
            # In the caller's thread: with several processes all must launch their programs in the same order.
            ready.append((step, _put(batch, batches.batch, sharding)))
            if len(ready) > AHEAD:
                yield ready.popleft()
    finally:
        host.close()


def _check_sendable(batches: Batches) -> None:
    """Raises ConfigError where other processes cannot be given a data set: it holds a lock or an open file, say."""
    import cloudpickle

    # Which grain sends with, and brings along.
    try:
        cloudpickle.dumps(batches)
    except Exception as error:                                                  # any object may refuse in its own way
        kind = type(batches.source).__name__
        raise ConfigError(f"{kind} cannot be given to other processes ({str(error)[:100]}): set config.workers=0, or have it "
                          "open what it reads at first use") from None


def _begin_worker(index: int, count: int) -> None:
    """What a reading process does first: it leaves the accelerators alone, and ends when its parent does and not before.

    Slurm and terminals signal all processes of a run. The parent then still needs batches until its step is saved.
    """
    jax.config.update("jax_platforms", "cpu")
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _put(batch: dict[str, Any], size: int, sharding: jax.sharding.Sharding) -> dict[str, jax.Array]:
    """The local part of a batch -> global arrays."""
    arrays = {
        key: jax.make_array_from_process_local_data(sharding, value, (size, *value.shape[1:]))
        for key, value in batch.items() if isinstance(value, np.ndarray)
    }
    if arrays["image"].dtype == np.uint8:
        arrays["image"] = _to_unit(arrays["image"])
    return arrays
