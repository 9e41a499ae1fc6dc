"""One job at a time, which tells its news; who leaves ends it; pictures as a job."""
import threading
import time

import numpy as np
import pytest

from diffusion_jax.pipelines import jobs
from diffusion_jax.pipelines.jobs import Counter, Device, News, making
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.pipelines.request import Request


def test_news_come_and_the_result_last():
    def job(tell):
        meter = Counter(tell, 3)
        for _ in range(3):
            meter.update(1)
        return "done"

    news = list(Device().watched(job))
    assert news[-1].result == "done" and all(item.result is None for item in news[:-1])
    assert all(item.done <= item.total for item in news)


def test_what_a_job_raises_is_raised():
    with pytest.raises(KeyError):
        list(Device().watched(lambda tell: {}["x"]))


def test_one_job_at_a_time_and_none_is_lost():
    device, running, most, results = Device(), [], [], []

    def job(number):
        def made(tell):
            running.append(number)
            most.append(len(running))
            time.sleep(0.01)
            running.remove(number)
            return number

        return made

    def client(number):
        results.append((number, list(device.watched(job(number)))[-1].result))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(1, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and sorted(results) == [(number, number) for number in range(1, 11)]


def test_who_leaves_ends_the_job():
    device, steps = Device(), []

    def endless(tell):
        while True:
            steps.append(1)
            tell(News(len(steps), 10**9))
            time.sleep(0.01)

    watching = device.watched(endless)
    next(watching)
    watching.close()
    assert list(device.watched(lambda tell: "free"))[-1].result == "free"
    count = len(steps)
    time.sleep(0.05)
    assert len(steps) == count


def test_a_silent_job_lets_its_watcher_breathe(monkeypatch):
    monkeypatch.setattr(jobs, "BEAT", 0.01)
    gate = threading.Event()
    watching = Device().watched(lambda tell: gate.wait(5))
    beats = [next(watching) for _ in range(5)]
    assert all(item.result is None for item in beats)
    gate.set()
    assert list(watching)[-1].result is True


def test_pictures_are_told_as_they_stand_and_are_those_of_a_call(folders):
    pipe = pipeline(folders.label)
    told = []
    samples = making(pipe, Request(label=(3, 4)), 2, 7)(told.append)
    want = pipe([3, 4], num=2, seed=7)
    np.testing.assert_array_equal(samples.images, want.images)
    assert samples.labels.tolist() == [3, 3, 4, 4] and samples.origin.seed == 7
    assert [item.done for item in told] == [1, 2, 3, 4] and {item.total for item in told} == {4}
    np.testing.assert_array_equal(told[-1].images, want.images)


@pytest.mark.slow
def test_of_a_cascade_the_steps_are_counted(folders):
    pipe = pipeline(folders.label, upsamplers=[folders.upsampler])
    told = []
    samples = making(pipe, Request(label=3), 1, 0)(told.append)
    np.testing.assert_array_equal(samples.images, pipe(3).images)
    assert told[-1].done == told[-1].total == 8 and told[-1].images is None
