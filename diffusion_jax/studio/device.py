"""The one device of a studio: a job at a time, watched while it is made, ended when nobody waits for it any more.

A job runs on a thread and tells its news to a generator, which a server closes when the page is left or Stop is pressed: the
next news then end the job, and a few steps of a sampler later the device is free.
"""
from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

BEAT = 0.5
"""Seconds without news after which a server is asked whether anybody still waits."""


class News(NamedTuple):
    """Steps done, of how many (0: nobody can tell), pictures uint8 [N, H, W, C] as they stand, and at last the result."""

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
        """The news of a job, of several that wait the newest, and at last its result; raises what the job raises."""
        news: queue.Queue[Any] = queue.Queue()
        left = threading.Event()

        def tell(item: News) -> None:
            if left.is_set():
                raise Left
            news.put(item)

        def work() -> None:
            with self._free:  # the one before may have been told to stop, and be in the middle of a step
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
