"""A data set written as array_record by tensorflow-datasets' own writer, which needs no TensorFlow, and read back."""
import io
import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.tfds import TFDS, first_text

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


def write(root, name, features, examples, config=None):
    folder = root / name / (config or "") / "1.0.0"
    folder.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name="test", config_name=config)
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=4, file_format="array_record")
    writer.initialize_splits(["train"])
    writer.add_examples({"train": examples})
    writer.close_all()
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """'pets' with classes and captions; two more with images only, which are a raw tensor."""
    root = tmp_path_factory.mktemp("tfds")
    f = tfds.features
    write(root, "pets", {
        "image": f.Image(shape=(None, None, 3)), "label": f.ClassLabel(names=["cat", "dog"]),
        "captions": f.Sequence({"text": f.Text(), "id": np.int64}), "title": f.Text(), "number": np.int64,
    }, [{"image": png(image), "label": i % 2, "title": f"Bär {i}", "number": 10 * i,
         "captions": [{"text": f"first {i}", "id": 1}, {"text": "second", "id": 2}]} for i, image in enumerate(IMAGES)])
    for name, config in (("plain", None), ("coco_captions", "2014")):  # the code of the latter imports TensorFlow
        write(root, name, {"image": f.Tensor(shape=(6, 5, 3), dtype=np.uint8)}, [{"image": image} for image in IMAGES], config)
    return root


def test_records(root):
    source = build({"name": "diffusion_jax.data.tfds:TFDS", "dataset": "pets", "split": "train", "data_dir": str(root)})
    assert len(source) == 7 and source.names == ("cat", "dog") and hash(source) == hash(TFDS("pets", "train", str(root)))
    for i in range(7):
        record = source[i]
        np.testing.assert_array_equal(record["image"], IMAGES[i])
        assert (record["label"], record["caption"]) == (i % 2, f"first {i}")
    assert "tensorflow" not in sys.modules


def test_chosen_features_and_slices(root):
    source = TFDS("pets:1.0.0", "train[2:5]", str(root), label="number", caption="title")
    assert [source[i]["label"] for i in range(len(source))] == [20, 30, 40]
    assert source[0]["caption"] == "Bär 2" and source.names is None


@pytest.mark.parametrize("name", ["plain", "coco_captions", "coco_captions/2014:1.0.0"])
def test_images_alone(root, name):
    source = TFDS(name, "train", str(root))
    np.testing.assert_array_equal(source[5]["image"], IMAGES[5])
    assert set(source[5]) == {"image"} and source.names is None


@pytest.mark.parametrize(("arguments", "message"), [
    (("cats", "train"), "not known, nor prepared"),
    (("pets:2.0.0", "train"), "not known, nor prepared"),
    (("mnist", "train"), r"not prepared.*tfds\.builder\('mnist', data_dir=.*array_record.*download_and_prepare"),
    (("lsun/bedroom", "train"), r"not prepared.*'lsun/bedroom'"),
    (("pets", "test"), "Unknown split 'test'"),
    (("pets", "train", None, "imag"), "'image'"),
    (("pets", "train", None, "image", "lable"), "'label'"),
])
def test_mistakes(root, arguments, message):
    source = TFDS(*arguments[:2], str(root), *arguments[3:])
    with pytest.raises(ConfigError, match=message) as error:
        source[len(source) - 1]
    assert "\n" not in str(error.value)


def test_other_formats_are_refused(root, tmp_path):
    folder = write(tmp_path, "old", {"image": tfds.features.Tensor(shape=(6, 5, 3), dtype=np.uint8)}, [{"image": IMAGES[0]}])
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(ConfigError, match=r"tfrecord only.*another_folder"):
        len(TFDS("old", "train", str(tmp_path)))


def test_labels_that_are_none(root, tmp_path):
    """As held-out sets have them: -1 for a class that nobody tells."""
    f = tfds.features
    columns = {"whole": f.Scalar(np.int64), "half": f.Scalar(np.float32), "truth": f.Scalar(np.bool_),
               "many": f.Tensor(shape=(2,), dtype=np.int64)}
    write(tmp_path, "odd", {"image": f.Tensor(shape=(6, 5, 3), dtype=np.uint8), **columns},
          [{"image": IMAGES[0], "whole": value, "half": 0.5, "truth": True, "many": [1, 2]} for value in (3, -1)])
    for label, row, says in (("whole", 1, "label -1 is not within 0"), ("half", 0, "label '0.5'"), ("truth", 0, "label 'True'"),
                             ("many", 0, "labels must be one integer")):
        with pytest.raises(ConfigError, match=f"odd train, record {row}: .*{says}"):
            TFDS("odd", "train", str(tmp_path), label=label)[row]
    source = TFDS("odd", "train", str(tmp_path), label="whole")
    assert source[0]["label"] == 3
    assert "label" not in TFDS("pets", "train", str(root), label="")[0]


@pytest.mark.parametrize("value", [[], {"text": []}, {"words": [b"a"]}, 5, np.zeros(3), np.array([])], ids=str)
def test_what_holds_no_text_is_refused(value):
    with pytest.raises(ConfigError, match="is no text: choose another caption feature"):
        first_text(value)


@pytest.mark.parametrize("value", [
    b"a cat", "a cat", [b"a cat", b"b"], np.array([b"a cat"], object), {"text": [b"a cat", b"b"], "id": [1, 2]},
])
def test_first_text(value):
    assert first_text(value) == "a cat"
