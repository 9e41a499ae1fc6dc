"""The one device of a server: a job at a time, watched while it is made, ended when nobody waits
for it any more.

A job runs on a thread and tells its news to a generator, which a server closes when the page is
left or Stop is pressed: the next news then end the job, and a few steps of a sampler later the
device is free.
"""
from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from diffusion_jax.pipelines import cascade
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.request import Request
from diffusion_jax.pipelines.samples import Samples

LOOKS = 10
"""At pictures that arise, about."""
BEAT = 0.5
"""Seconds without news after which a server is asked whether anybody still waits."""


class News(NamedTuple):
    """How far a job is.

    Attributes:
      done, total: steps, and of how many; 0 where nobody can tell.
      images: pictures as they stand, uint8 [N, H, W, C]; None where they are not seen.
      result: what the job returns, at last.
    """

    done: int = 0
    total: int = 0
    images: Any = None
    result: Any = None


Tell = Callable[[News], None]


class Left(Exception):
    """Nobody waits for a job any more."""


class Counter:
    """A meter (pipelines/progress.py) whose count is news."""

    def __init__(self, tell: Tell, total: int):
        self._tell, self._total, self._done = tell, total, 0

    def update(self, n: float | None = 1, /) -> None:
        """So many more steps are made."""
        self._done += int(n or 0)
        self._tell(News(min(self._done, self._total), self._total))


class Device:
    """Makes one job at a time."""

    def __init__(self):
        self._free = threading.Lock()

    def watched(self, job: Callable[[Tell], Any]) -> Iterator[News]:
        """The news of a job, of several that wait the newest, and at last its result; raises what
        the job raises."""
        news: queue.Queue[Any] = queue.Queue()
        left = threading.Event()

        def tell(item: News) -> None:
            if left.is_set():
                raise Left
            news.put(item)

        def work() -> None:
            # The job before may have been told to stop, and be in the middle of a step.
            with self._free:
                try:
                    tell(News())
                    news.put(News(1, 1, result=job(tell)))
                except BaseException as error:
                    news.put(error)

        threading.Thread(target=work, daemon=True).start()
        item: Any = News()
        try:
            while item.result is None:
                item = newest(news, item)
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            left.set()


def newest(news: queue.Queue[Any], last: News) -> Any:
    """The last of what waits; `last` again, without pictures, where nothing comes for a `BEAT`."""
    try:
        item = news.get(timeout=BEAT)
        while not news.empty():
            item = news.get()
        return item
    except queue.Empty:
        return last._replace(images=None)


def making(pipe: Pipeline, request: Request, num: int, seed: int) -> Callable[[Tell], Samples]:
    """A call of a pipeline as a job, which tells pictures as they stand where one model makes them
    in steps, and else how many steps are done."""

    def job(tell: Tell) -> Samples:
        if pipe.makes_tokens:
            return pipe(request, num, seed)
        total = cascade.steps_of(pipe.stages, 1, 1)
        if pipe.upsamplers or pipe.run.task.embedder is not None:
            return replace(pipe, meter=Counter(tell, total))(request, num, seed)
        start = pipe.start(request, num, seed)
        for step, images in pipe.stream(request, num, seed, every=max(1, total // LOOKS)):
            tell(News(step, total, images))
        return Samples(images, start.origin, start.labels, start.prompts)

    return job
