"""What all sources read with: paths, damaged files, archives that lead out, labels."""
import json

import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.data import source


def test_a_path_is_expanded_or_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    assert source.existing("~/data") == tmp_path / "data"
    with pytest.raises(ConfigError, match="~/none: no such file or folder"):
        source.existing("~/none")


@pytest.mark.parametrize("name", ["a.png", "a/b.png", "a/..b/c..png", "./a.png", "~/a.png"])
def test_names_that_stay_inside_are_taken_as_they_are(name):
    assert source.inside(name, "x.zip") == name


LEADING_OUT = ("", "/a.png", "../a.png", "a/../b.png", "a\\..\\b.png", "\\a.png", "C:/a.png", "c:a.png", "a/..")


@pytest.mark.parametrize("name", LEADING_OUT)
def test_names_that_lead_out_are_refused(name):
    with pytest.raises(ConfigError, match="x.zip: refused .* absolute or leads out"):
        source.inside(name, "x.zip")


def test_what_a_damaged_file_raises_is_one_line_and_what_may_be_asked_again_is_not_touched():
    for error in (ValueError("two\nlines"), EOFError("two  lines"), RuntimeError("two\n lines"), OSError("two lines")):
        with pytest.raises(ConfigError, match=r"x: cannot read it \(two lines\); fetch") as caught, source.readable("x"):
            raise error
        assert caught.value.__cause__ is error
    with pytest.raises(OSError, match="busy"), source.readable("x", again=True):
        raise OSError(5, "busy")
    with pytest.raises(ConfigError, match="no errno"), source.readable("x", again=True):
        raise OSError("no errno: of the decoder, not of the disk")
    with pytest.raises(ConfigError, match="^said already$"), source.readable("x"):
        raise ConfigError("said already")
    with pytest.raises(KeyError), source.readable("x"):                            # a fault of ours
        raise KeyError("a")


def test_an_npz_is_read_by_name_and_nothing_else_is(tmp_path):
    np.savez(tmp_path / "good.npz", a=np.arange(3))
    with source.npz(tmp_path / "good.npz") as arrays:
        assert arrays["a"].tolist() == [0, 1, 2]
    np.save(tmp_path / "single.npy", np.arange(3))
    with pytest.raises(ConfigError, match="a single array, an .npy"), source.npz(tmp_path / "single.npy"):
        pass
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], object))
    with pytest.raises(ConfigError, match="pickled.npz: is not an .npz"), source.npz(tmp_path / "pickled.npz") as arrays:
        arrays["a"]


def test_json_is_read_or_named(tmp_path):
    (tmp_path / "good.json").write_text(json.dumps({"ä": 1}), encoding="utf-8")
    assert source.read_json(tmp_path / "good.json") == {"ä": 1}
    for name, data in (("cut", b"{"), ("latin", '"ä"'.encode("latin-1"))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=f"{name}: is not JSON"):
            source.read_json(tmp_path / name)


def test_labels_are_integers_as_they_are_or_names_by_their_place():
    labels, names = source.class_indices(["dog", "cat", "dog"], None, "x")
    assert (labels.tolist(), names, labels.dtype) == ([1, 0, 1], ("cat", "dog"), np.int64)
    assert source.class_indices(["dog"], ("dog", "cat"), "x")[0].tolist() == [0]
    labels, names = source.class_indices(np.array([3, 1], np.uint8), None, "x")
    assert (labels.tolist(), names, labels.dtype) == ([3, 1], None, np.int64)


def test_no_labels_are_none():
    assert source.class_indices([], None, "x")[0].tolist() == []


def test_numbers_as_strings_whose_order_is_their_own_are_names():
    labels, names = source.class_indices(["9", "0", "3"], None, "x")
    assert (labels.tolist(), names) == ([2, 0, 1], ("0", "3", "9"))
    assert source.class_indices(["10", "9"], ("9", "10"), "x")[0].tolist() == [1, 0]


NEITHER = "labels must be one integer or one string each"


@pytest.mark.parametrize(("values", "names", "where", "says"), [
    (["cow"], ("cat",), 0, "label 'cow' is not among its 1 class names"),
    *(([1, wrong], None, 1, NEITHER) for wrong in ("a", None, True, 0.5, 2.0, float("nan"), float("inf"), [1], {}, 10**30, b"a")),
    *((wrong, None, 0, NEITHER) for wrong in (
        [0.5], [[1], [2]], [[1], [1, 2]], [True, False], np.array([0.0, 1.0]), np.array([True]), np.array([[1], [2]]),
        np.array([b"a"]), np.array([np.nan, 1]), np.array([{}, 1], object))),
    ([0, 2], ("a", "b"), 1, "label 2 does not fit its 2 class names"), ([-1, 0], ("a", "b"), 0, "label -1 does not fit"),
    ([0, -3], None, 1, "label -3 is not within 0"), (np.array([0, 2**31]), None, 1, "label 2147483648 is not within 0"),
    (np.array([2**64 - 1], np.uint64), None, 0, "is not within 0"),
    (["10", "9", "2"], None, None, "labels are numbers written as strings, which sort as 10, 2, 9"),
], ids=str)
def test_labels_that_are_neither_are_refused(values, names, where, says):
    with pytest.raises(ConfigError, match=f"x: {'' if where is None else f'value {where}: '}.*{says}") as error:
        source.class_indices(values, names, "x")
    assert "\n" not in str(error.value)
    if where is not None:
        with pytest.raises(ConfigError, match=f"line {where}: .*{says}"):
            source.class_indices(values, names, "x", lambda i: f"line {i}")


class Places:
    """A source that knows where its records are."""

    def __getitem__(self, i):
        return {"image": i}

    def place(self, i):
        return f"cats/{i}.png"


def test_what_cannot_be_decoded_has_the_name_of_its_record():
    def refuse(record, rng):
        raise ConfigError("too long")

    for records, name in ((Places(), "cats/3.png"), ([{}] * 4, "record 3 of ")):
        with pytest.raises(ConfigError, match=f"^{name}.*: too long$"):
            source.decoded(records, refuse, 3)
    assert source.decoded(Places(), lambda record, rng: (record, rng), 3, 5) == ({"image": 3}, 5)


def test_a_file_is_no_folder_nor_a_folder_a_file(tmp_path):
    (tmp_path / "x").touch()
    assert source.existing(tmp_path / "x", "file") and source.existing(tmp_path, "folder")
    with pytest.raises(ConfigError, match="x: is a file; give the folder"):
        source.existing(tmp_path / "x", "folder")
    with pytest.raises(ConfigError, match="is no file"):
        source.existing(tmp_path, "file")


def test_json_after_a_mark_or_too_deep(tmp_path):
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbf[1]")
    assert source.read_json(tmp_path / "x") == [1]
    (tmp_path / "x").write_text("[" * 100_000)
    for path in (tmp_path / "x", tmp_path):
        with pytest.raises(ConfigError, match="is n") as error:
            source.read_json(path)
        assert "\n" not in str(error.value)
