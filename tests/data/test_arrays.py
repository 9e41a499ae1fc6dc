"""Layouts of .npz, .zip and class sheets, written here and read back."""
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data import loader
from diffusion_jax.data.arrays import Arrays, Tiles
from diffusion_jax.data.image import Decode

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 1, 0, 2])
SPLITS = ["train", "val", "train", "train", "val", "train"]
NAMES = ["ant", "bee", "cat"]
CAPTIONS = [f"caption {i}" for i in range(6)]


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_zip(path, names, images=IMAGES):
    with zipfile.ZipFile(path, "w") as archive:
        for name, image in zip(names, images, strict=True):
            archive.writestr(name, png(image))
    return str(path)


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def write_json(path, content):
    path.write_text(json.dumps(content))
    return path.name


def check(source, rows, labels=None, captions=None, images=IMAGES):
    assert len(source) == len(rows)
    for i, row in enumerate(rows):
        record = source[i]
        np.testing.assert_array_equal(record["image"], images[row])
        assert record.get("label") == (None if labels is None else labels[row])
        assert record.get("caption") == (None if captions is None else captions[row])


def test_npz_with_meta(tmp_path):
    path = write_npz(tmp_path / "a.npz", image=IMAGES, label=LABELS)
    meta = write_json(tmp_path / "labels.json", {"names": NAMES, "caption": CAPTIONS, "split": SPLITS, "tile": 32})
    everything = Arrays(path, meta=(meta,))
    check(everything, range(6), LABELS, CAPTIONS)
    assert everything.names == tuple(NAMES)
    check(Arrays(path, split="val", meta=(meta,)), [1, 4], LABELS, CAPTIONS)


def test_adm_npz(tmp_path):
    check(Arrays(write_npz(tmp_path / "a.npz", arr_0=IMAGES, arr_1=LABELS)), range(6), LABELS)
    source = Arrays(write_npz(tmp_path / "b.npz", arr_0=IMAGES))
    check(source, range(6))
    assert source.names is None


def test_mnist_npz(tmp_path):
    grey = IMAGES[..., 0]
    path = write_npz(tmp_path / "mnist.npz", x_train=grey[:4], y_train=LABELS[:4], x_test=grey[4:], y_test=LABELS[4:])
    check(Arrays(path, split="train"), range(4), LABELS, images=grey[..., None])
    check(Arrays(path, split="test"), range(2), LABELS[4:], images=grey[4:, ..., None])
    check(Arrays(path, image="x_test", label="y_test"), range(2), LABELS[4:], images=grey[4:, ..., None])


def test_rgba_is_put_on_white_and_string_labels_are_numbered(tmp_path):
    rgba = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 4), dtype=np.uint8)
    rgba[:3, ..., 3], rgba[3:, ..., 3] = 255, 0
    path = write_npz(tmp_path / "tiles.npz", rgba=rgba)
    rows = [{"kind": NAMES[label], "caption": caption} for label, caption in zip(LABELS, CAPTIONS, strict=True)]
    source = Arrays(path, label="kind", meta=(write_json(tmp_path / "captions.json", rows),))
    white = np.where(np.arange(6)[:, None, None, None] < 3, rgba[..., :3], 255)
    check(source, range(6), LABELS, CAPTIONS, white)
    assert source.names == tuple(NAMES)


def test_zip_with_labels_and_a_bare_list_of_captions(tmp_path):
    path = write_zip(tmp_path / "images.zip", [f"{i:05}.png" for i in range(6)])
    meta = (write_json(tmp_path / "labels.json", {"names": NAMES, "label": LABELS.tolist(), "random_split": SPLITS}),
            write_json(tmp_path / "captions_template.json", CAPTIONS))
    spec = {"name": "diffusion_jax.data.arrays:Arrays", "path": path, "split": "train", "split_key": "random_split",
            "caption": "captions_template", "meta": list(meta)}
    source = build(spec)
    check(source, [0, 2, 3, 5], LABELS, CAPTIONS)
    assert source == build(spec) and hash(source) == hash(build(spec))


def test_zip_members_are_sorted_and_others_left_out(tmp_path):
    path = write_zip(tmp_path / "a.zip", ["2_x.png", "0_x.PNG", "1_x.png", "1_y.png", "0_y.png", "2_y.png"])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "text")
        archive.writestr("__MACOSX/._0_x.png", "not an image")
    order = [1, 4, 2, 3, 0, 5]  # 0_x 0_y 1_x 1_y 2_x 2_y
    meta = write_json(tmp_path / "labels.json", {"names": NAMES})
    source = Arrays(path, label="prefix", meta=(meta,))
    assert [source[i]["label"] for i in range(6)] == [0, 0, 1, 1, 2, 2] and source.names == tuple(NAMES)
    np.testing.assert_array_equal(source[2]["image"], IMAGES[order[2]])


@pytest.mark.parametrize(("label", "form"), [("prefix", "{}_{}.png"), ("folder", "all/{}/{}.png")])
def test_zip_labels_from_names(tmp_path, label, form):
    path = write_zip(tmp_path / "a.zip", [form.format(NAMES[k], i) for i, k in enumerate(LABELS)])
    source = Arrays(path, label=label)
    assert [source[i]["label"] for i in range(6)] == sorted(LABELS) and source.names == tuple(NAMES)


def test_part_of_the_classes_keeps_their_numbers(tmp_path):
    path = write_zip(tmp_path / "a.zip", [f"cat_{i}.png" for i in range(6)])
    meta = write_json(tmp_path / "labels.json", {"names": NAMES})
    assert Arrays(path, label="prefix", meta=(meta,))[0]["label"] == 2


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "b/../../a.png", "..\\a.png", "C:\\a.png"])
def test_zip_members_that_lead_out_are_refused(tmp_path, name):
    path = write_zip(tmp_path / "a.zip", ["0.png", name], IMAGES[:2])
    with pytest.raises(ConfigError, match="refused"):
        len(Arrays(path))


def test_a_corrupt_member_is_named(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.png", png(IMAGES[0]))
        archive.writestr("1.png", png(IMAGES[1])[:60])
        archive.writestr("2.png", png(IMAGES[2]))
    with pytest.raises(ConfigError, match=r"a\.zip/1\.png"):
        Arrays(str(path))[1]
    data = path.read_bytes()
    at = data.rindex(png(IMAGES[2])) + 50
    path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1:])  # the checksum of the archive no longer holds
    source = Arrays(str(path))
    np.testing.assert_array_equal(source[0]["image"], IMAGES[0])
    with pytest.raises(ConfigError, match=r"a\.zip/2\.png"):
        source[2]


@pytest.mark.parametrize(("options", "message"), [
    ({"label": "lable"}, "'label'"),
    ({"image": "imag"}, "'image'"),
    ({"split": "trian"}, "'train'"),
    ({"split": "train", "split_key": "spilt"}, "'split'"),
    ({"label": "gaps"}, "without gaps"),
    ({"label": "short"}, "6 images but 2"),
    ({"caption": "label"}, "captions must be"),
    ({"label": "large"}, "do not fit"),
    ({"label": "strange"}, "'dog'"),
    ({"meta": "labels.json"}, "tuple"),
    ({"meta": ("label.json",)}, "no such file"),
    ({"meta": ("bad.json",)}, "not JSON"),
    ({"path": "b.npz"}, "no such file"),
    ({"meta": ("number.json",)}, "neither columns nor a list"),
    ({"meta": ("named.json",)}, "list of the class names"),
    ({"meta": ("latin.json",)}, "not JSON"),
    ({"path": "bad.npz"}, "not an .npz"),
    ({"path": "empty.npz"}, "not an .npz"),
    ({"path": "npy.npz"}, "a single array"),
    ({"path": "bad.zip"}, "cannot read"),
    ({"path": "bad.json"}, "must end in"),
    ({"path": "float.npz"}, "want uint8"),
    ({"path": "other.npz"}, "which array"),
])
def test_mistakes_are_one_line_that_helps(tmp_path, options, message):
    write_npz(tmp_path / "a.npz", image=IMAGES, label=LABELS)
    write_npz(tmp_path / "float.npz", image=IMAGES / 255)
    write_npz(tmp_path / "other.npz", mu=np.zeros(3))
    columns = {"names": NAMES, "split": SPLITS, "caption": CAPTIONS, "gaps": [1, None, 2, 0, 0, 0], "short": [0, 1],
               "large": [0, 1, 2, 3, 0, 0], "strange": ["ant", "dog", "ant", "bee", "cat", "cat"]}
    write_json(tmp_path / "labels.json", columns)
    for bad in ("bad.npz", "bad.zip", "bad.json"):
        (tmp_path / bad).write_text("{not this")
    (tmp_path / "number.json").write_text("5")
    (tmp_path / "named.json").write_text('{"names": 5}')
    (tmp_path / "latin.json").write_bytes('["süß"]'.encode("latin-1"))
    (tmp_path / "empty.npz").write_bytes(b"")
    with (tmp_path / "npy.npz").open("wb") as file:
        np.save(file, IMAGES)
    options = {"meta": ("labels.json",)} | options
    options["path"] = str(tmp_path / options.get("path", "a.npz"))
    with pytest.raises(ConfigError, match=message) as error:
        len(Arrays(**options))
    assert "\n" not in str(error.value)


def test_a_member_that_the_disk_refuses_once_is_asked_for_again(tmp_path, monkeypatch):
    source = Arrays(write_zip(tmp_path / "a.zip", [f"{i}.png" for i in range(6)]))
    batches = loader.Batches(source, Decode(8), batch=6, seed=0, shuffle=False)
    monkeypatch.setattr(loader, "RETRIES", (0.0,))
    refused, read = [5], zipfile.ZipFile.read

    def once(archive, name):
        if refused:
            raise OSError(refused.pop(), "Input/output error")
        return read(archive, name)

    monkeypatch.setattr(zipfile.ZipFile, "read", once)
    np.testing.assert_array_equal(batches[0]["image"], IMAGES)
    assert not refused


def test_tiles_are_cut_row_by_row(tmp_path):
    of_class = np.random.default_rng(2).integers(0, 256, (2, 6, 4, 4, 3), dtype=np.uint8)
    for name, tiles in zip(("dog", "cat"), of_class, strict=True):
        sheet = np.concatenate([np.concatenate(tiles[:3], 1), np.concatenate(tiles[3:], 1)])  # 2 rows of 3
        Image.fromarray(sheet).save(tmp_path / f"train_{name}.png")
    Image.fromarray(of_class[0, 0]).save(tmp_path / "test_dog.png")
    source = Tiles(str(tmp_path), tile=4)
    assert source.names == ("cat", "dog") and len(source) == 12
    for i in range(12):
        np.testing.assert_array_equal(source[i]["image"], of_class[1 - i // 6, i % 6])
        assert source[i]["label"] == i // 6
    assert len(Tiles(str(tmp_path), "test", 4)) == 1
    with pytest.raises(ConfigError, match="'train'"):
        len(Tiles(str(tmp_path), "trian"))
    with pytest.raises(ConfigError, match="tiles of 5"):
        len(Tiles(str(tmp_path), tile=5))
