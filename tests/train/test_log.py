"""What is written reads back exactly, and resuming forgets what comes after."""
import json
import re
import struct
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.train.log import Console, Events, Writer


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder):
    """The events of every TensorBoard file: records of length, checksum, data, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted((folder / "tensorboard").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12:at + 12 + size])
            at += 16 + size


def test_floats_read_back_bit_for_bit(tmp_path):
    values = (np.random.default_rng(0).normal(size=20) * 10.0 ** np.arange(-10, 10)).astype(np.float32)
    with Writer(tmp_path) as writer:
        for step, value in enumerate(values):
            writer.scalars(step, {"loss": value, "same": jax.numpy.asarray(value)})
    assert [line["step"] for line in lines(tmp_path)] == list(range(20))
    for name in ("loss", "same"):
        np.testing.assert_array_equal(np.float32([line[name] for line in lines(tmp_path)]), values)


def test_a_full_disk_is_said_in_one_line(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    writer = Writer(tmp_path)
    for write in (lambda: writer.scalars(1, {"loss": 0.5}), writer.close):          # what was not written is written once more
        with pytest.raises(ConfigError, match="metrics could not be written to .*No space left.*: make room") as error:
            write()
        assert "\n" not in str(error.value)


def test_events_are_written_by_no_thread_that_a_full_disk_could_stop(tmp_path, monkeypatch):
    threads, written = threading.active_count(), Events(tmp_path)
    written.speeds(1, {"images_per_second": 99.0})
    assert threading.active_count() == threads and len(list(events(tmp_path))) == 2           # the first is the file's own
    with Path("/dev/full").open("wb", buffering=0) as full:
        written._file._py_recordio_writer._writer = full
        with pytest.raises(ConfigError, match="metrics could not be written to .*No space left"):
            written.speeds(2, {"images_per_second": 99.0})


def test_tensorboard_gets_scalars_images_and_the_point_of_resumption(tmp_path):
    with Writer(tmp_path) as writer:
        writer.resume(6)
        writer.scalars(7, {"loss": 0.5})
        writer.speeds(7, {"images_per_second": 99.0})
        writer.images(7, {"samples": np.zeros((4, 8, 8, 1)), "colour": np.ones((2, 8, 8, 3))})
    found = list(events(tmp_path))
    values = {value.tag: value for event in found for value in event.summary.value}
    assert values["loss"].simple_value == 0.5 and values["images_per_second"].simple_value == 99.0
    assert values["samples"].image.encoded_image_string[1:4] == b"PNG" and values["colour"].image.colorspace == 3
    assert any(event.session_log.status == event.session_log.START and event.step == 7 for event in found)
    assert lines(tmp_path) == [{"step": 7, "loss": 0.5}]                # no speed: it differs from run to run


def test_only_the_first_process_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Writer(tmp_path / "run") as writer:
        writer.resume(0)
        writer.scalars(1, {"loss": 1.0})
        writer.images(1, {"a": np.zeros((1, 2, 2, 3))})
    console = Console(0, 2, 4)
    console.say("hello")
    console.launched(1)
    console.finished(1, 0.5)
    console.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


class Memory:
    """A tracker that remembers its calls."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, *arguments))


def test_a_tracker_gets_all_that_tensorboard_gets_as_plain_numbers_and_arrays(tmp_path):
    memory = Memory()
    with Writer(tmp_path, [memory]) as writer:
        writer.resume(6)
        writer.scalars(np.int32(7), {"loss": jax.numpy.float32(0.1)})
        writer.speeds(7, {"images_per_second": 99})
        writer.images(7, {"samples": jax.numpy.zeros((1, 2, 2, 1))})
    kinds = [call[0] for call in memory.calls]
    assert kinds == ["resume", "scalars", "speeds", "images", "close"] and memory.calls[0] == ("resume", 6)
    assert memory.calls[1] == ("scalars", 7, {"loss": float(np.float32(0.1))}) and type(memory.calls[1][1]) is int
    assert type(memory.calls[3][2]["samples"]) is np.ndarray


def test_the_files_are_closed_whatever_a_tracker_does(tmp_path):
    memory = Memory()
    memory.close = lambda: 1 / 0
    writer = Writer(tmp_path, [memory])
    writer.scalars(1, {"loss": 0.5})
    with pytest.raises(ZeroDivisionError):
        writer.close()
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5}] and all(part._file is None for part in writer._trackers[:2])


class Clock:
    """A device that takes 2 s for a step, and a host that gives it the next one while it works."""

    def __init__(self, monkeypatch):
        self.now, self.ready = 100.0, 0.0
        monkeypatch.setattr("diffusion_jax.train.log.time.perf_counter", lambda: self.now)

    def launch(self, console, step):
        self.ready = max(self.ready, self.now) + 2.0
        console.launched(step)

    def pause(self, console, seconds):
        with console.pause():
            self.now += seconds


@pytest.mark.parametrize("every", [1, 4, 10])
@pytest.mark.parametrize("pauses", [
    {}, {3: 80.0}, {1: 80.0}, {3: 80.0, 4: 7.0}, dict.fromkeys(range(1, 20), 30.0), {3: 1.0, 5: 0.5}],
                         ids=["none", "one", "first", "two in turn", "all", "shorter than a step"])
@pytest.mark.parametrize("fetched", [False, True], ids=["a step late", "before the pause"])
def test_speed_is_that_of_the_steps_whatever_happens_between(monkeypatch, capsys, every, pauses, fetched):
    """The loop's own order: launch k, fetch k - 1, at a checkpoint k too, pause."""
    clock, console, speeds, pending = Clock(monkeypatch), Console(0, 20, 8), [], {}

    def fetch():
        for step, ready in sorted(pending.items()):
            clock.now = max(clock.now, ready)
            speeds.append(console.finished(step, 1.25 if step % every == 0 else None))
        pending.clear()

    for step in range(1, 21):
        clock.launch(console, step)
        fetch()
        pending[step] = clock.ready
        if fetched and step in pauses:
            fetch()
        clock.pause(console, pauses.get(step, 0.0))
    fetch()
    console.close()
    shown = [speed for speed in speeds if speed is not None]
    np.testing.assert_allclose(shown, 8 / 2.0, rtol=0.02)
    if fetched or len(pauses) < 19:
        assert shown
    rows = [line for line in capsys.readouterr().out.splitlines() if "/s  00" in line]
    assert all(re.match(r"\d\d:\d\d:\d\d step \d+/20  loss 1.25  ", line) for line in rows)
    left = [line.split("images/s")[1] for line in rows]
    assert left == [f"  00:{2 * (20 - step):02d} left" for step in range(every, 21, every) if speeds[step - 1]]


def test_the_time_of_compilation_is_no_time_of_training(monkeypatch):
    clock, console = Clock(monkeypatch), Console(0, 10, 8)
    clock.now += 500.0                                                   # compiled before the first launch
    clock.launch(console, 1)
    clock.now = clock.ready
    console.launched(2)
    assert console.finished(1, 1.0) == 4.0


ODD = ["", '{"step": 3, "lo', "garbage\n", '{"loss": 1}\n', "\x00\x00\n", "[3]\n", "null\n", '{"step": null}\n',
       '{"step": "1"}\n',
       '{"step": 1e999}\n', '{"step": NaN}\n', "[" * 100_000 + "\n", b"\xff\xfe\n", b'{"step": 3, "n\xc3', "\ufeff"]


@pytest.mark.parametrize("torn", ODD, ids=lambda torn: repr(torn)[:20])
def test_resume_drops_later_torn_and_odd_lines(tmp_path, torn):
    with Writer(tmp_path) as writer:
        for step in (1, 2, 3, 4):
            writer.scalars(step, {"loss": step / 3, "name \u2028 with a line's end": 1.0})
    whole = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn if isinstance(torn, bytes) else torn.encode())
    with Writer(tmp_path) as writer:
        writer.resume(2)
        assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(whole[:2])
        writer.scalars(3, {"loss": 1.0})
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(whole[0] + whole[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]
