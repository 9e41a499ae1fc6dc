"""One job at a time; who leaves ends it."""
import threading
import time

import pytest

from diffusion_jax.studio.device import Counter, Device, News


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
    from diffusion_jax.studio import device

    monkeypatch.setattr(device, "BEAT", 0.01)
    gate = threading.Event()
    watching = Device().watched(lambda tell: gate.wait(5))
    beats = [next(watching) for _ in range(5)]
    assert all(item.result is None for item in beats)
    gate.set()
    assert list(watching)[-1].result is True
