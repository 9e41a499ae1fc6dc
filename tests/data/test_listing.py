"""What lies beside pictures: metadata.csv beside metadata.jsonl, and a text for each picture."""
import csv
import io
import json
import unicodedata

import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.data import listing
from diffusion_jax.data.folder import Folder
from diffusion_jax.data.pictures import save_png


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("0.png", "1.png", "x/2.png")):
        save_png(tmp_path / name, np.full((4, 4, 3), 40 * i, np.uint8))
    return tmp_path


def write_csv(folder, *rows, header=("file_name", "text", "label"), end="\r\n"):
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows([header, *rows])
    (folder / "metadata.csv").write_bytes(text.getvalue().encode())


ROWS = [("1.png", 'a "cat", sitting', "cat"), ("0.png", "eine\nKatze – süß", "dog"), ("1.png", "", "cat")]


@pytest.mark.parametrize("end", ["\r\n", "\n"], ids=ascii)
@pytest.mark.parametrize("key", ["text", "caption"])
def test_a_csv_says_what_the_same_rows_of_json_say(folder, key, end):
    lines = [json.dumps(dict(zip(("file_name", key, "label"), row, strict=True))) for row in ROWS]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    of_json = listing.listed(folder / "metadata.jsonl")
    write_csv(folder, *ROWS, header=("file_name", key, "label"), end=end)
    of_csv = listing.listed(folder / "metadata.csv")
    assert of_csv.captions == of_json.captions == [text for _, text, _ in ROWS]
    assert of_csv.names == of_json.names == ("cat", "dog")
    np.testing.assert_array_equal(of_csv.labels, [0, 1, 0])
    assert of_csv.files == of_json.files == [folder / name for name, _, _ in ROWS]


def test_labels_of_a_csv_are_numbers_where_all_are_spelt_as_such(folder):
    write_csv(folder, ("0.png", "a", "10"), ("1.png", "b", "9"))
    rows = listing.listed(folder / "metadata.csv")
    assert rows.labels.tolist() == [10, 9] and rows.names is None
    write_csv(folder, ("0.png", "a", "10"), ("1.png", "b", "-9"))
    assert listing.listed(folder / "metadata.csv").names == ("-9", "10")


@pytest.mark.parametrize(("text", "message"), [
    ("", "its first line is ''; name its columns there"),
    ("0.png,a cat\n", "its first line is '0.png,a cat'; name its columns"),
    ("file_name;text\n0.png;a cat\n", "its first line is 'file_name;text'; .* with commas"),
    ("file_name,text,text\n0.png,a,b\n", "each once"),
    ("file_name,text\n", "lists no images"),
    ("file_name,text\n0.png,a cat, sitting\n", "csv:2: has 3 values for 2 columns; put texts with commas"),
    ("file_name,text\n0.png\n", "csv:2: has 1 values"),
    ('file_name,text\n0.png,"a cat\n', "csv:2: is no row of a .csv"),
    ("file_name,text\n9.png,a\n", "csv:2: there is no '9.png' beside it"),
    ("file_name,text\n../0.png,a\n", "csv:2: refused"),
    ("file_name,label\n0.png,cat\n1.png,\n", r"csv:3 \(1.png\): 1 of 2 lines have 'label', this one has not"),
    ("file_name,label\n0.png,cat\n0.png,dog\n", r"csv:3 \(0.png\): is of class 1, and of class 0"),
    ("file_name,text\n0.png,s\xfc\xdf\n".encode("latin-1"), "is not UTF-8"),
], ids=lambda value: str(value)[:40])
def test_a_bad_csv_is_named_by_its_line(folder, text, message):
    (folder / "metadata.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message) as error:
        listing.listed(folder / "metadata.csv")
    assert "\n" not in str(error.value)


def test_blanks_and_the_mark_of_editors_are_no_part_of_a_csv(folder):
    (folder / "metadata.csv").write_bytes(b"\xef\xbb\xbffile_name, text\n0.png, a cat\n\n1.png, a dog\n")
    assert listing.listed(folder / "metadata.csv").captions == ["a cat", "a dog"]


def test_captions_are_the_texts_beside_pictures(folder):
    images = [folder / "0.png", folder / "x" / "2.png"]
    assert listing.captions_beside(images) is None and not listing.texts_beside(images)
    for name, text in (("0.txt", "\ufeffa cat\n"), ("x/2.TXT", " süß,\nzwei \n"), ("notes.txt", "mine"), ("x/._2.txt", "\0")):
        (folder / name).write_text(text, encoding="utf-8")
    assert listing.captions_beside(images) == ["a cat", "süß,\nzwei"]
    assert listing.texts_beside(images) == [folder / "0.txt", folder / "x" / "2.TXT"]
    with pytest.raises(ConfigError, match="1.png: has no 1.txt beside it, as 2 of 3 pictures have; write its caption, or"):
        listing.captions_beside([*images, folder / "1.png"])
    (folder / "0.txt").write_bytes(b"s\xfc\xdf")
    with pytest.raises(ConfigError, match="0.txt: is not UTF-8"):
        listing.captions_beside(images)


def test_captions_of_two_kinds_are_refused(folder):
    write_csv(folder, ("0.png", "a", "1"))
    (folder / "1.txt").write_text("of a picture that is not listed")
    assert len(Folder(str(folder))) == 1
    (folder / "0.txt").write_text("b")
    with pytest.raises(ConfigError, match="0.txt: is a caption beside a picture that metadata.csv lists too; keep one"):
        len(Folder(str(folder)))
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png"}')
    with pytest.raises(ConfigError, match="has both metadata.jsonl and metadata.csv; keep the one"):
        len(Folder(str(folder)))


@pytest.mark.parametrize(("on_disk", "in_list"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_the_same_whether_accents_stand_apart_or_not(tmp_path, on_disk, in_list):
    name = "fête/rosé.png"
    file = tmp_path / unicodedata.normalize(on_disk, name)
    save_png(file, np.zeros((4, 4, 3), np.uint8))
    write_csv(tmp_path, (unicodedata.normalize(in_list, name), "a rosé", "x"))
    assert listing.listed(tmp_path / "metadata.csv").files == [file]
    write_csv(tmp_path, ("fête/rose.png", "a rosé", "x"))
    with pytest.raises(ConfigError, match="there is no 'fête/rose.png' beside it"):
        listing.listed(tmp_path / "metadata.csv")
    (tmp_path / "metadata.csv").unlink()
    file.with_name(unicodedata.normalize(in_list, "rosé.txt")).write_text("a rosé")
    assert listing.captions_beside([file]) == ["a rosé"]
