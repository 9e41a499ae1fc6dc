"""What is written reads back exactly, and resuming forgets what comes after."""
import json
import struct
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.train.log import Console, Writer


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
    threads, writer = threading.active_count(), Writer(tmp_path)
    writer.speeds(1, {"images_per_second": 99.0})
    assert threading.active_count() == threads and len(list(events(tmp_path))) == 2           # the first is the file's own
    with Path("/dev/full").open("wb", buffering=0) as full:
        writer._events._py_recordio_writer._writer = full
        with pytest.raises(ConfigError, match="metrics could not be written to .*No space left"):
            writer.speeds(2, {"images_per_second": 99.0})


@pytest.mark.parametrize("torn", ["", '{"step": 3, "lo', "garbage\n", '{"loss": 1}\n', "\x00\x00\n"])
def test_resume_drops_later_and_torn_lines(tmp_path, torn):
    with Writer(tmp_path) as writer:
        for step in (1, 2, 3, 4):
            writer.scalars(step, {"loss": step / 3})
    whole = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    with Writer(tmp_path) as writer:
        writer.resume(2)
        assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(whole[:2])
        writer.scalars(3, {"loss": 1.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole[0] + whole[1] + whole[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


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
    console.advance(1, 0.0, 0.5)
    console.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_speed_leaves_out_the_first_step_and_what_the_caller_does(monkeypatch, capsys):
    now = iter([10.0, 10.5, 90.5, 91.0, 92.0])
    console = Console(0, 10, 8)
    monkeypatch.setattr("diffusion_jax.train.log.time.perf_counter", lambda: next(now))
    assert console.advance(1, console.clock(), 2.5) is None              # at 10.0: compilation lies before
    console.leave()                                                      # at 10.5
    console.enter()                                                      # at 90.5
    assert console.advance(2, console.clock()) is None                   # at 91.0, not shown
    assert console.advance(3, console.clock(), 1.25) == 2 * 8 / 2.0      # at 92.0: 82 s for 2 batches, 80 of them the caller's
    console.close()
    out = capsys.readouterr().out
    assert "step 3/10  loss 1.25  8.0 images/s  00:07 left" in out
