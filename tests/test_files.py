"""Files are whole or not there, and nothing is overwritten."""
import json
import os

import pytest

from diffusion_jax import files
from diffusion_jax.build import ConfigError, number


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with files.whole(path) as unfinished:
        unfinished.write_text("all")
        assert not path.exists()
    assert path.read_text() == "all"
    with pytest.raises(KeyboardInterrupt), files.whole(path) as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "all"
    assert os.listdir(path.parent) == ["x.txt"]


def test_an_output_is_tried_before_the_work(tmp_path):
    files.writable(tmp_path / "a" / "x.png")
    files.writable(f"{tmp_path}/folder/")
    assert (tmp_path / "folder").is_dir() and not list((tmp_path / "a").iterdir())
    (tmp_path / "x.png").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "x.png", tmp_path / "file" / "x.png", f"{tmp_path}/file/"):
        with pytest.raises(ConfigError, match="choose another"):
            files.writable(path)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "x"
    with pytest.raises(KeyboardInterrupt), files.whole_folder(path) as unfinished:
        (unfinished / "a").touch()
        raise KeyboardInterrupt
    assert os.listdir(path.parent) == []
    path.mkdir()
    with files.whole_folder(path) as unfinished:
        (unfinished / "a").touch()
        assert not os.listdir(path)
    assert os.listdir(path) == ["a"] and os.listdir(path.parent) == ["x"]
    for taken in (path, path / "a", path / "a" / "b"):
        with pytest.raises(ConfigError, match="choose another"), files.whole_folder(taken):
            raise AssertionError
    assert os.listdir(path) == ["a"]


def test_a_free_name(tmp_path):
    names = []
    for _ in range(3):
        names.append(files.unused(tmp_path / "edit.png"))
        names[-1].touch()
    assert [path.name for path in names] == ["edit.png", "edit-2.png", "edit-3.png"]


def test_lines_end_with_line_feeds_alone(tmp_path):
    captions = ["one\u2028line", "an\x85other", "a third\x0b"]
    text = "\ufeff" + "".join(json.dumps(caption, ensure_ascii=False) + "\r\n\n" for caption in captions)
    (tmp_path / "x.jsonl").write_bytes(text.encode())
    lines = list(files.json_lines(tmp_path / "x.jsonl"))
    assert [json.loads(line, strict=False) for _, line in lines] == captions
    assert [count for count, _ in lines] == [1, 3, 5]


def test_lines_of_objects(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": "\xe2\x80\xa8"}\r\n')
    assert list(files.json_objects(tmp_path / "x.jsonl")) == [(1, {"a": 1}), (3, {"a": "\u2028"})]


@pytest.mark.parametrize("line, says", [
    *((line, "not a JSON object") for line in (b'{"a": ', b"[1]", b'"a"', b"5", b"null", b"[" * 100_000, b"{}{}")),
    (b'{"a": "\xff"}', "is not UTF-8"),
])
def test_a_line_that_is_no_object_has_its_number(tmp_path, line, says):
    (tmp_path / "x.jsonl").write_bytes(b"{}\n\n" + line)
    with pytest.raises(ConfigError, match=f"x.jsonl:3: {says}") as error:
        list(files.json_objects(tmp_path / "x.jsonl"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_torn_line_is_left_out(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"step": 1}\n[2]\n\n\xff\n{"step": 3}\n{"st')
    assert files.rows_that_read(tmp_path / "x.jsonl") == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize("value, options, result", [
    (3, {}, 3), ("1e-3", {}, 1e-3), (" -.5 ", {}, -0.5), ("7", dict(integer=True), 7), (7.0, dict(integer=True), 7),
    (2**63, dict(integer=True), 2**63),
])
def test_a_number(value, options, result):
    assert number("x", value, **options) == result


@pytest.mark.parametrize("value, options, says", [
    *((value, {}, "a number") for value in (True, "1_000", "\u00b2", None, "", [1])),
    *((value, dict(integer=True), "whole") for value in (1.7, "1.7")),
    ("nan", {}, "finite"), (float("inf"), {}, "finite"), (float("nan"), dict(integer=True), "finite"),
    (-1, dict(least=0), "0 or more"), (2, dict(least=0, most=1), "0 ... 1"),
])
def test_what_is_no_number_or_out_of_bounds(value, options, says):
    with pytest.raises(ConfigError, match=says):
        number("x", value, **options)


def test_a_name_with_a_zero_byte_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds a zero byte"):
        files.writable(f"{tmp_path}/a\0b.png")
