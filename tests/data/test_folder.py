"""Folders of images, written here and read back."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data import loader
from diffusion_jax.data.folder import Folder, _hash_of
from diffusion_jax.data.image import Decode

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


def write(root, *names):
    for name, image in zip(names, IMAGES, strict=False):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / name)
    return Folder(str(root))


def metadata(root, *rows):
    (root / "metadata.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")


def pick(source):
    """Which image each record holds."""
    return [next(k for k, image in enumerate(IMAGES) if np.array_equal(image, source[i]["image"])) for i in range(len(source))]


def test_class_folders(tmp_path):
    source = write(tmp_path, "dog/1.png", "cat/b/2.PNG", "cat/a.png", "dog/0.png")
    (tmp_path / "cat" / "notes.txt").write_text("text")
    (tmp_path / ".cache").mkdir()
    assert source.names == ("cat", "dog") and len(source) == 4
    assert pick(source) == [2, 1, 3, 0]
    assert [source[i]["label"] for i in range(4)] == [0, 0, 1, 1] and "caption" not in source[0]
    assert build({"name": "diffusion_jax.data.folder:Folder", "path": str(tmp_path)}) == source


def test_loose_images(tmp_path):
    source = write(tmp_path, "b.png", "a.png")
    assert source.names is None and pick(source) == [1, 0] and set(source[0]) == {"image"}


@pytest.mark.parametrize("key", ["text", "caption"])
def test_metadata(tmp_path, key):
    source = write(tmp_path, "x/0.png", "1.png")
    metadata(tmp_path, {"file_name": "1.png", key: "eine Katze – süß"}, "", {"file_name": "x/0.png", key: "a dog"})
    assert pick(source) == [1, 0] and [source[i]["caption"] for i in range(2)] == ["eine Katze – süß", "a dog"]
    assert source.names is None and "label" not in source[0]


@pytest.mark.parametrize(("labels", "want", "names"), [((1, 0), [1, 0], None), (("dog", "cat"), [1, 0], ("cat", "dog"))])
def test_metadata_labels(tmp_path, labels, want, names):
    source = write(tmp_path, "0.png", "1.png")
    metadata(tmp_path, *({"file_name": f"{i}.png", "label": label} for i, label in enumerate(labels)))
    assert [source[i]["label"] for i in range(2)] == want and source.names == names


GOOD = {"file_name": "0.png", "text": "a", "label": 3}


@pytest.mark.parametrize(("row", "message"), [
    (GOOD | {"file_name": "../0.png"}, "jsonl:2: refused"),
    (GOOD | {"file_name": "/etc/passwd.png"}, "jsonl:2: refused"),
    (GOOD | {"file_name": "x/../../0.png"}, "jsonl:2: refused"),
    (GOOD | {"file_name": "C:\\0.png"}, "jsonl:2: refused"),
    (GOOD | {"file_name": ""}, "jsonl:2: refused"),
    (GOOD | {"file_name": "2.png"}, "jsonl:2: there is no"),
    (GOOD | {"file_name": "x"}, "jsonl:2: there is no"),                        # a folder
    (GOOD | {"file_name": "pipe.png"}, "jsonl:2: there is no"),                 # which would be read for ever
    ({"file": "0.png"}, "jsonl:2: not a JSON object"),
    (GOOD | {"file_name": 3}, "jsonl:2: not a JSON object"),
    (GOOD | {"file_name": None}, "jsonl:2: not a JSON object"),
    ("[1]", "jsonl:2: not a JSON object"),
    ("{", "jsonl:2: not a JSON object"),
    ('{"file_name": "1.png", "te', "jsonl:2: not a JSON object"),              # torn
    ("[" * 100_000, "jsonl:2: not a JSON object"),
    ({"file_name": "1.png", "label": 3}, r"jsonl:2 \(1.png\): 1 of 2 lines have 'text', this one has not"),
    ({"file_name": "1.png", "text": "b"}, r"jsonl:2 \(1.png\): 1 of 2 lines have 'label'"),
    *((GOOD | {"text": text}, r"jsonl:2 \(0.png\): caption .* one string each") for text in (["a"], 5, None, {"a": 1}, True)),
    ('{"file_name": "0.png", "text": "\\ud800", "label": 3}', r"jsonl:2 \(0.png\): caption .*ud800' holds half a letter"),
    *((GOOD | {"label": label}, r"jsonl:2 \(0.png\): label .*one integer or one string each")
      for label in (0.5, 3.0, True, None, [3], "cat", float("nan"), 10**30)),
    (GOOD | {"label": -3}, r"jsonl:2 \(0.png\): label -3 is not within 0"),
    (GOOD | {"label": 2**31}, r"jsonl:2 \(0.png\): label 2147483648 is not within 0"),
    (GOOD | {"label": 4}, r"jsonl:2 \(0.png\): is of class 4, and of class 3 in .*jsonl:1"),
], ids=lambda value: str(value)[:60])
def test_bad_metadata(tmp_path, row, message):
    source = write(tmp_path, "0.png", "1.png", "x/0.png")
    os.mkfifo(tmp_path / "pipe.png")
    metadata(tmp_path, GOOD, row)
    with pytest.raises(ConfigError, match=message) as error:
        len(source)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(("text", "message"), [
    (b"", "lists no images"),
    (b"\n \n", "lists no images"),
    ('{"file_name": "0.png", "text": "a"}\n\n{"file_name": "0.png", "text": "süß"}'.encode("latin-1"), "jsonl:3: is not UTF-8"),
    ('{"file_name": "0.png"}'.encode("utf-16"), "jsonl:1: is not UTF-8"),
    (b"\x89PNG\r\n\x1a\n", "jsonl:1: is not UTF-8"),
], ids=str)
def test_metadata_that_is_none(tmp_path, text, message):
    source = write(tmp_path, "0.png")
    (tmp_path / "metadata.jsonl").write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        len(source)


@pytest.mark.parametrize("caption", ["one\u2028line", "an\x85other", "\u2029", "", "猫\U0001f408", "b\x0bc\x0cd\x1ce"], ids=ascii)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"], ids=ascii)
def test_a_line_ends_where_json_lines_end(tmp_path, caption, end):
    source = write(tmp_path, "0.png", "1.png")
    rows = [json.dumps({"file_name": f"{i}.png", "text": text}, ensure_ascii=False) for i, text in enumerate((caption, "b"))]
    # After the mark that some editors write.
    (tmp_path / "metadata.jsonl").write_bytes(("\ufeff" + end.join(rows)).encode())
    assert [source[i]["caption"] for i in range(2)] == [caption, "b"] and pick(source) == [0, 1]


def test_a_picture_with_several_captions_is_several_records(tmp_path):
    source = write(tmp_path, "0.png", "1.png")
    rows = (("1.png", "a"), ("0.png", "b"), ("1.png", "c"))
    metadata(tmp_path, *({"file_name": name, "text": text, "label": 1} for name, text in rows))
    assert pick(source) == [1, 0, 1] and source.captions == ["a", "b", "c"] and source.labels.tolist() == [1, 1, 1]


def test_links_are_followed(tmp_path):
    write(tmp_path / "store", "0.png", "1.png")
    source = Folder(str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    for name in ("0.png", "1.png"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "store" / name)
    assert pick(source) == [0, 1]
    (tmp_path / "store" / "1.png").unlink()
    with pytest.raises(ConfigError, match="1.png: is a link to a file that is not there"):
        len(Folder(str(tmp_path / "data")))


def test_bad_folders(tmp_path):
    with pytest.raises(ConfigError, match="no images"):
        len(Folder(str(tmp_path)))
    with pytest.raises(ConfigError, match="no such file"):
        len(Folder(str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="both"):
        len(write(tmp_path, "a.png", "cat/b.png"))
    with pytest.raises(ConfigError, match="a.png: is a file; give the folder"):
        len(Folder(str(tmp_path / "a.png")))
    (tmp_path / "a.png").unlink()
    for inside in ((), ("notes.txt",), (".hidden.png",)):
        (tmp_path / "bee").mkdir(exist_ok=True)
        for name in inside:
            (tmp_path / "bee" / name).write_text("text")
        # Left out, it would move the labels of all classes behind it.
        with pytest.raises(ConfigError, match="bee: is a class folder without images; fill it, remove it, or put a dot"):
            len(Folder(str(tmp_path)))


@pytest.mark.parametrize("path", [3, None, b"x", "x" * 5000, "a\0b", "~nobody-knows/x"], ids=lambda path: str(path)[:20])
def test_paths_that_are_none(path):
    with pytest.raises(ConfigError) as error:
        len(Folder(path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_corrupt_image_is_named(tmp_path):
    source = write(tmp_path, "cat/0.png", "cat/1.png")
    (tmp_path / "cat" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert source[0]["label"] == 0
    with pytest.raises(ConfigError, match=r"cat/1\.png"):
        source[1]


def test_a_file_that_the_disk_refuses_once_is_asked_for_again(tmp_path, monkeypatch):
    batches = loader.Batches(write(tmp_path, "0.png", "1.png"), Decode(6, crop="none"), batch=2, seed=0, shuffle=False)
    want = batches[0]["image"]
    monkeypatch.setattr(loader, "RETRIES", (0.0,))
    refused, read = [5, 5, 5], Path.read_bytes

    def some(path):
        if refused:
            raise OSError(refused.pop(), "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", some)
    with pytest.raises(ConfigError, match="record 0 of .* does not read, tried 2 times: .*Input/output error"):
        batches[0]
    np.testing.assert_array_equal(batches[0]["image"], want)
    assert not refused


def test_what_a_system_leaves_in_a_folder_is_no_class(tmp_path):
    source = write(tmp_path, "cat/0.png", "dog/0.png", "__MACOSX/cat/0.png", "cat/.cache/1.png")
    for name in (".DS_Store", "Thumbs.db", "cat/._0.png", "dog/Thumbs.db", "@eaDir/0.png", "cat/@eaDir/0.png/SYNO_THUMB.jpg",
                 ".ipynb_checkpoints/0.png", "$RECYCLE.BIN/0.png", "lost+found/x", "cat/__MACOSX/._0.png", "desktop.ini"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "cat" / "folder.png").mkdir()
    assert source.names == ("cat", "dog") and pick(source) == [0, 1]


def test_all_grey_or_one_coloured(tmp_path):
    source = write(tmp_path, "1.png")
    Image.fromarray(IMAGES[0, ..., 0]).save(tmp_path / "0.png")
    assert Folder(str(tmp_path)).channels == 3
    (tmp_path / "1.png").unlink()
    assert Folder(str(tmp_path)).channels == 1 and source[0]["image"].shape == (6, 5, 1)


def test_a_record_has_the_name_of_its_file(tmp_path):
    source = write(tmp_path, "cat/0.png", "dog/1.png")
    assert [source.place(i) for i in range(2)] == [str(tmp_path / "cat/0.png"), str(tmp_path / "dog/1.png")]
    Image.fromarray(np.zeros((1, 3000, 3), np.uint8)).save(tmp_path / "cat" / "0.png")
    with pytest.raises(ConfigError, match=r"cat/0.png: a picture of 3000x1 pixels would become one of 768000x256"):
        loader.Batches(source, Decode(256), batch=2, seed=0, shuffle=False)[0]


def test_texts_beside_pictures_are_captions_with_the_classes_of_their_folders(tmp_path):
    source = write(tmp_path, "cat/0.png", "dog/1.png")
    for name in ("cat/0", "dog/1"):
        (tmp_path / f"{name}.txt").write_text(f"this is {name}\n")
    assert source.captions == ["this is cat/0", "this is dog/1"] and source.names == ("cat", "dog")
    assert [(source[i]["label"], source[i]["caption"]) for i in range(2)] == [(0, "this is cat/0"), (1, "this is dog/1")]
    with pytest.raises(ConfigError, match="b.png: has no b.txt beside it, as 1 of 2 pictures have"):
        loose = write(tmp_path / "loose", "a.png", "b.png")
        (tmp_path / "loose" / "a.txt").write_text("a")
        len(loose)


# Splits ---------------------------------------------------------------------------------------------------------------------


def touch(root, *names):
    """Empty files: a split looks at names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names_in(root, split, **options):
    source = Folder(str(root), split, **options)
    return [Path(source.place(i)).relative_to(root).as_posix() for i in range(len(source))]


def test_a_share_is_held_out_and_every_record_is_on_one_side(tmp_path):
    touch(tmp_path, *(f"{label}/{i}.png" for label in ("cat", "dog", "emu") for i in range(100)))
    for share in (0.1, 0.6):
        train, test = (names_in(tmp_path, split, holdout=share) for split in ("train", "test"))
        assert sorted(train + test) == sorted(names_in(tmp_path, ""))
        # Three deviations of a binomial.
        assert abs(len(test) - 300 * share) < 3 * (300 * share * (1 - share)) ** 0.5
        # What is held out at a share is held out at any larger one.
        assert set(test) >= set(names_in(tmp_path, "test", holdout=share / 2))
    sides = [Folder(str(tmp_path), split) for split in ("train", "test")]
    assert all(side.names == ("cat", "dog", "emu") for side in sides)
    for side in sides:
        assert side.labels.tolist() == [side.names.index(Path(side.place(i)).parent.name) for i in range(len(side))]


def test_a_picture_stays_on_its_side_when_others_come_and_go(tmp_path):
    touch(tmp_path, *(f"{i}.png" for i in range(100)))
    test = names_in(tmp_path, "test")
    touch(tmp_path, *(f"new-{i}.png" for i in range(100)))
    (tmp_path / "5.png").unlink()
    left = [name for name in test if name != "5.png"]
    assert [name for name in names_in(tmp_path, "test") if "new" not in name] == left


def test_the_share_of_a_name_is_that_of_its_digest():
    """(1) for SHA-256("abc"), whose digest FIPS 180-2 prints: ba7816bf 8f01cfea ..."""
    assert _hash_of("abc") == 0xBA7816BF8F01CFEA / 2**64
    assert _hash_of("u\u0308.png") == _hash_of("\xfc.png")                      # as macOS writes it


def test_captions_of_a_picture_are_on_one_side(tmp_path):
    touch(tmp_path, *(f"{i}.png" for i in range(50)))
    rows = [{"file_name": ("" if k else "./") + f"{i}.png", "text": f"{k}", "label": i % 2} for k in range(3) for i in range(50)]
    metadata(tmp_path, *rows)
    for split in ("train", "test"):
        source = Folder(str(tmp_path), split, 0.3)
        files = [source.place(i).rpartition("(")[2].removeprefix("./") for i in range(len(source))]
        assert all(files.count(name) == 3 for name in files) and 0 < len(source) < 150
        assert source.captions == [source.place(i) and rows[int(source.place(i).split(":")[1].split()[0]) - 1]["text"]
                                   for i in range(len(source))]


@pytest.mark.parametrize("count", [2, 3, 5, 8])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.999])
def test_of_few_pictures_neither_side_is_empty(tmp_path, count, share):
    touch(tmp_path, *(f"{i}.png" for i in range(count)))
    train, test = (names_in(tmp_path, split, holdout=share) for split in ("train", "test"))
    assert train and test and sorted(train + test) == sorted(names_in(tmp_path, ""))


def test_a_picture_that_was_trained_on_is_never_held_out_when_others_come(tmp_path):
    trained = set()
    for i in range(40):
        touch(tmp_path, f"{i}.png")
        if i:
            assert not trained & set(names_in(tmp_path, "test"))
            trained |= set(names_in(tmp_path, "train"))


def test_one_picture_alone_is_not_split(tmp_path):
    touch(tmp_path, "0.png")
    assert len(Folder(str(tmp_path))) == 1
    for split in ("train", "test"):
        with pytest.raises(ConfigError, match="has one picture to read, '0.png', which cannot be trained on and held out"):
            len(Folder(str(tmp_path), split))


@pytest.mark.parametrize(("options", "message"), [
    (dict(split="tests"), "unknown split of a folder 'tests': did you mean 'test'"),
    (dict(split="train", holdout=0.0), "a share between 0 and 1"), (dict(split="train", holdout=1), "a share between 0 and 1"),
    (dict(split="train", holdout="a"), "holdout of Folder is a number"), (dict(holdout=0.2), "holdout of Folder is of a split"),
    (dict(without="0.png"), "give a tuple of file names, \\('0.png',\\)"),
], ids=str)
def test_options_that_are_none(options, message):
    with pytest.raises(ConfigError, match=message):
        Folder("x", **options)


def test_files_are_left_out_by_their_names(tmp_path):
    touch(tmp_path, *(f"cat/{i}.png" for i in range(30)), "dog/0.png")
    whole = {split: names_in(tmp_path, split) for split in ("", "train", "test")}
    out = (whole["test"][0], "dog/0.png", "cat/gone.png")
    for split, names in whole.items():
        assert names_in(tmp_path, split, without=out) == [name for name in names if name not in out]
    source = Folder(str(tmp_path), without=out)
    # Class names and files are those of all: a file that is mended comes back without moving a label.
    assert source.names == ("cat", "dog") and len(source.files) == 31 and set(source.labels) == {0}


def test_files_say_their_names_and_sizes_and_give_their_bytes(tmp_path):
    write(tmp_path, "cat/0.png", "dog/1.png")
    metadata(tmp_path, *({"file_name": "cat/0.png", "text": text} for text in "ab"), {"file_name": "dog/1.png", "text": "c"})
    source = Folder(str(tmp_path), "test", 0.5)
    assert [file.name for file in source.files] == ["cat/0.png", "dog/1.png"]
    for file in source.files:
        content = (tmp_path / file.name).read_bytes()
        assert source.content(file.name) == content and file.size == len(content)
        assert file.stamp == (tmp_path / file.name).stat().st_mtime_ns


def test_a_picture_that_does_not_read_says_nothing_of_colour(tmp_path):
    Image.fromarray(IMAGES[0, ..., 0]).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"broken")
    assert Folder(str(tmp_path)).channels == 1
