"""Folders of images, written here and read back."""
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data import loader
from diffusion_jax.data.folder import Folder
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
    (tmp_path / "empty").mkdir()
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


@pytest.mark.parametrize(("row", "message"), [
    ({"file_name": "../0.png"}, "refused"),
    ({"file_name": "/etc/passwd.png"}, "refused"),
    ({"file_name": "2.png"}, "there is no"),
    ({"file": "0.png"}, "jsonl:2: not a JSON object"),
    ({"file_name": 3}, "jsonl:2: not a JSON object"),
    ("[1]", "jsonl:2: not a JSON object"),
    ("{", "jsonl:2: not a JSON object"),
    ({"file_name": "1.png"}, "1 of 2 lines have 'text'"),
    ({"file_name": "1.png", "text": ["a"]}, "one string each"),
])
def test_bad_metadata(tmp_path, row, message):
    source = write(tmp_path, "0.png", "1.png")
    metadata(tmp_path, {"file_name": "0.png", "text": "a"}, row)
    with pytest.raises(ConfigError, match=message):
        len(source)


def test_metadata_in_another_encoding(tmp_path):
    source = write(tmp_path, "0.png")
    (tmp_path / "metadata.jsonl").write_bytes('{"file_name": "0.png", "text": "süß"}'.encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        len(source)


def test_bad_folders(tmp_path):
    with pytest.raises(ConfigError, match="no images"):
        len(Folder(str(tmp_path)))
    with pytest.raises(ConfigError, match="no such file"):
        len(Folder(str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="both"):
        len(write(tmp_path, "a.png", "cat/b.png"))


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
    for name in (".DS_Store", "Thumbs.db", "cat/._0.png", "dog/Thumbs.db"):
        (tmp_path / name).write_bytes(b"no image")
    assert source.names == ("cat", "dog") and pick(source) == [0, 1]
