"""Layouts of .npz, .zip and class sheets, written here and read back."""
import io
import json
import zipfile
import zlib

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
        for name in ("readme.txt", "__MACOSX/._0_x.png", "._1_x.png", ".DS_Store", "Thumbs.db", ".cache/1_x.png",
                     "@eaDir/1_x.png"):
            archive.writestr(name, "not an image")
        archive.mkdir("folder.png")
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


def test_folders_of_an_archive_sort_as_folders_do(tmp_path):
    path = write_zip(tmp_path / "a.zip", [f"{i}/0.png" for i in (1, 2, 8, 9, 10, 11)])
    source = Arrays(path, label="folder")
    assert source.names == ("1", "10", "11", "2", "8", "9") and source.labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_images_are_not_looked_for_in_the_files_of_labels(tmp_path):
    path = write_npz(tmp_path / "a.npz", image=IMAGES)
    rows = [{"image": f"{i}.png", "caption": caption} for i, caption in enumerate(CAPTIONS)]
    check(Arrays(path, meta=(write_json(tmp_path / "captions.json", rows),)), range(6), None, CAPTIONS)


def test_labels_captions_and_places_are_known_without_the_images(tmp_path):
    meta = (write_json(tmp_path / "labels.json", {"label": LABELS.tolist(), "caption": CAPTIONS, "split": SPLITS}),)
    array = Arrays(write_npz(tmp_path / "a.npz", image=IMAGES), split="val", meta=meta)
    archive = Arrays(write_zip(tmp_path / "a.zip", [f"{i}.png" for i in range(6)]), split="val", meta=meta)
    for source, place in ((array, f"{tmp_path}/a.npz, row 4"), (archive, f"{tmp_path}/a.zip/4.png")):
        assert source.labels.tolist() == [0, 0] and source.captions == [CAPTIONS[1], CAPTIONS[4]] and source.place(1) == place


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
    ({"label": "large"}, "a.npz, row 3: label 3 does not fit"),
    ({"label": "negative"}, "a.npz, row 1: label -1 does not fit"),
    ({"label": "half"}, "a.npz, row 5: label '0.5': labels must be"),
    ({"label": "truth"}, "a.npz, row 0: label 'True'"),
    ({"caption": "few"}, "a.npz, row 2: caption 'None': captions must be"),
    ({"meta": ("twice.json",)}, "'names' has 'bee' twice"),
    ({"meta": ("numbered.json",)}, "list of the class names"),
    ({"meta": ("empty.json",)}, "list of the class names"),
    ({"path": "none.npz"}, "want uint8"),
    ({"path": "five.npz"}, "want uint8"),
    ({"path": "columns.npz", "meta": ()}, "row 0: label '2.0': labels must be"),
    ({"path": "short.npz", "meta": ()}, "6 images but 5 values of 'arr_1'"),
    ({"path": "scalar.npz", "meta": ()}, "6 images but 1 values of 'arr_1'"),
    ({"path": "hot.npz", "meta": ()}, "row 0: label .*labels must be"),
    ({"path": "empty.zip", "meta": ()}, "holds no images"),
    ({"path": "twice.zip", "meta": ()}, "holds two files '0.png'"),
    ({"path": "folder.npz"}, "must end in .npz or .zip, and be a file"),
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
               "large": [0, 1, 2, 3, 0, 0], "negative": [0, -1, 0, 0, 0, 0], "half": [0, 0, 0, 0, 0, 0.5],
               "truth": [True, 0, 0, 0, 0, 0], "few": ["a", "b", None, "d", "e", "f"],
               "strange": ["ant", "dog", "ant", "bee", "cat", "cat"]}
    write_json(tmp_path / "labels.json", columns)
    for bad in ("bad.npz", "bad.zip", "bad.json"):
        (tmp_path / bad).write_text("{not this")
    (tmp_path / "number.json").write_text("5")
    (tmp_path / "named.json").write_text('{"names": 5}')
    (tmp_path / "latin.json").write_bytes('["süß"]'.encode("latin-1"))
    (tmp_path / "empty.npz").write_bytes(b"")
    for name, names in (("twice", ["ant", "bee", "bee"]), ("numbered", [1, 2]), ("empty", [])):
        write_json(tmp_path / f"{name}.json", {"names": names})
    write_npz(tmp_path / "none.npz", image=IMAGES[:0])
    write_npz(tmp_path / "five.npz", image=np.zeros((6, 4, 4, 5), np.uint8))
    for name, labels in (("columns", LABELS.astype(float)), ("short", LABELS[:5]), ("scalar", np.int64(3)), ("hot", np.eye(6))):
        write_npz(tmp_path / f"{name}.npz", arr_0=IMAGES, arr_1=labels)
    write_zip(tmp_path / "empty.zip", ["__MACOSX/._0.png"], IMAGES[:1])
    with pytest.warns(UserWarning, match="Duplicate name"):
        write_zip(tmp_path / "twice.zip", ["0.png", "0.png"], IMAGES[:2])
    (tmp_path / "folder.npz").mkdir()
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


def test_members_are_left_out_by_their_names(tmp_path):
    path = write_zip(tmp_path / "a.zip", [f"{i}.png" for i in range(6)])
    columns = {"names": NAMES, "label": LABELS.tolist(), "caption": CAPTIONS, "split": SPLITS}
    meta = (write_json(tmp_path / "labels.json", columns),)
    check(Arrays(path, meta=meta, without=("1.png", "9.png")), [0, 2, 3, 4, 5], LABELS, CAPTIONS)
    source = Arrays(path, meta=meta, split="val", without=("1.png",))
    check(source, [4], LABELS, CAPTIONS)
    assert source.place(0) == f"{path}/4.png" and source.labels.tolist() == [0] and source.captions == CAPTIONS[4:5]
    # A file that is mended comes back: those that are left out are among them.
    assert [file.name for file in source.files] == ["1.png", "4.png"] and source.content("1.png") == png(IMAGES[1])
    contents = [png(IMAGES[row]) for row in (1, 4)]
    assert [(file.size, file.stamp) for file in source.files] == [(len(each), zlib.crc32(each)) for each in contents]
    with pytest.raises(ConfigError, match="holds arrays, and no files that could be left out"):
        len(Arrays(write_npz(tmp_path / "a.npz", arr_0=IMAGES), without=("1.png",)))
    with pytest.raises(ConfigError, match="without='1.png': give a tuple"):
        Arrays(path, without="1.png")


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
    (tmp_path / "._train_dog.png").write_bytes(b"no image")
    (tmp_path / "train_cow.png").mkdir()
    assert Tiles(str(tmp_path), tile=4).names == ("cat", "dog")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "train_ant.png")
    grey = Tiles(str(tmp_path), tile=4)
    assert grey[0]["image"].shape == (4, 4, 3) and grey.labels.tolist() == [0] + [1] * 6 + [2] * 6
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "train_ant.jpg")
    with pytest.raises(ConfigError, match="train_ant.png: is a second sheet of a class, beside train_ant.jpg"):
        len(Tiles(str(tmp_path), tile=4))
    with pytest.raises(ConfigError, match="is a file; give the folder"):
        len(Tiles(str(tmp_path / "train_dog.png")))
    for tile in (0, -4, 1.5, float("nan"), 10**9):
        with pytest.raises(ConfigError, match="tile of Tiles"):
            Tiles(str(tmp_path), tile=tile)
