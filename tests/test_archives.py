"""Archives whose members are named out of their folder: whoever reads them writes nothing at all."""
import io
import pickle
import zipfile

import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.data.pictures import read_batch
from diffusion_jax.metrics import moments
from diffusion_jax.pretrained import reader

IMAGES = np.zeros((2, 4, 4, 3), np.uint8)


def archive(path, name, content):
    """An archive of what a reader expects, and of a member `name` with the same bytes as its first."""
    with zipfile.ZipFile(path, "w") as file:
        for number, (member, data) in enumerate(content.items()):
            file.writestr(member, data)
            if not number:
                file.writestr(name, data)
    return path


def npy(array):
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


READERS = {
    "pictures": (read_batch, "x.npz", {"arr_0.npy": npy(IMAGES)}),
    "records": (lambda path: Arrays(str(path))[0], "x.npz", {"image.npy": npy(IMAGES)}),
    "images": (lambda path: Arrays(str(path))[0], "x.zip", {"0.png": b"\x89PNG"}),
    "statistics": (moments.load, "x.npz", {"mu.npy": npy(np.zeros(2)), "sigma.npy": npy(np.eye(2))}),
    "weights": (reader.read, "x.npz", {"w.npy": npy(np.ones(3, np.float32))}),
    "torchscript": (reader.read, "x.pt", {"a/data.pkl": pickle.dumps({}), "a/constants.pkl": pickle.dumps(())}),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("name", ["../outside.npy", "a/../../outside.npy", "{}/outside.npy"])
def test_members_that_lead_out_write_nothing(tmp_path, monkeypatch, kind, name):
    read, file, content = READERS[kind]
    folder = tmp_path / "inner" / "folder"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    path = archive(folder / file, name.format(tmp_path), content)
    before = path.read_bytes()
    try:
        read(path)
    except ConfigError as error:
        assert file in str(error)
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path] and path.read_bytes() == before


@pytest.mark.parametrize("kind", ["pictures", "records", "statistics"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", npy(np.zeros(3))], ids=["empty", "cut", "npy"])
def test_what_is_no_npz_is_refused_in_one_line(tmp_path, kind, content):
    read, file, _ = READERS[kind]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{file}: is not an .npz, or a damaged one") as error:
        read(tmp_path / file)
    assert "\n" not in str(error.value)


def promised(descr, shape, body=b""):
    """An .npy whose header says one thing and whose body is another."""
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": descr, "fortran_order": False, "shape": shape})
    return data.getvalue() + body


def pickled(value):
    data = io.BytesIO()
    np.save(data, value, allow_pickle=True)
    return data.getvalue()


PROMISES = {
    "more than any machine has": promised("|u1", (10**15, 8, 8, 3)),
    "more than this one has": promised("|u1", (10**7, 64, 64, 3), b"0" * 100),
    "more than can be counted": promised("|u1", (10**30,)),
    "more than there is": promised("|u1", (2, 4, 4, 3), b"0" * 95),
    "less than there is": promised("|u1", (2, 4, 4, 3), b"0" * 97),
    "below zero": promised("|u1", (-2, -4, 4, 3), b"0" * 96),
    "long texts": promised("<U99999999", (10**6,)),
    "objects": pickled(np.array([{}, 1], object)),
    "objects in a record": pickled(np.zeros(2, [("a", object)])),
    "no array": b"a cat",
    "nothing": b"",
    "half a header": promised("|u1", (2,))[:20],
    "another version": b"\x93NUMPY\x09\x00" + b"0" * 100,
    "code": promised("|u1", (2,)).replace(b"'|u1'", b"exit()"),
}


@pytest.mark.parametrize("kind", ["pictures", "records", "statistics"])
@pytest.mark.parametrize("promise", PROMISES)
def test_an_array_that_is_not_there_is_refused_before_room_is_made(tmp_path, monkeypatch, kind, promise):
    read, file, content = READERS[kind]
    with zipfile.ZipFile(tmp_path / file, "w", zipfile.ZIP_DEFLATED) as bad:
        bad.writestr(next(iter(content)), PROMISES[promise])
    # NumPy makes room for what a header says; nothing here may come so far.
    monkeypatch.setattr(np.lib.format, "read_array", None)
    with pytest.raises(ConfigError, match=f"{file}: is not an .npz, or a damaged one") as error:
        read(tmp_path / file)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(("kind", "member"), [("pictures", "arr_0.npy"), ("records", "image.npy"), ("images", "0.png")])
def test_a_member_that_unpacks_to_a_thousand_times_its_size(tmp_path, monkeypatch, kind, member):
    read, file, _ = READERS[kind]
    monkeypatch.setattr("diffusion_jax.data.source.UNPACKED", 10**5)
    body = npy(np.zeros((100, 64, 64, 3), np.uint8)) if file.endswith("npz") else b"\0" * 10**6
    with zipfile.ZipFile(tmp_path / file, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr(member, body)
    with pytest.raises(ConfigError, match=f"{file}.*{member}' would unpack [0-9]+ bytes to {len(body)}"):
        read(tmp_path / file)


def test_an_archive_that_says_it_is_large_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion_jax.data.source.UNPACKED", 1000)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as whole:
        whole.writestr("arr_0.npy", npy(IMAGES))
    data = (tmp_path / "x.npz").read_bytes()
    size = len(npy(IMAGES)).to_bytes(4, "little")
    (tmp_path / "x.npz").write_bytes(data.replace(size, (10**9).to_bytes(4, "little")))        # packed and unpacked, both
    with pytest.raises(ConfigError, match="x.npz: .* would unpack [0-9]+ bytes to 1000000000"):
        read_batch(tmp_path / "x.npz")


def test_many_arrays_that_compress_well_are_read(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", arr_0=np.zeros((500, 16, 16, 3), np.uint8), arr_1=np.zeros(500, np.int64))
    images, labels = read_batch(tmp_path / "x.npz")
    assert images.shape == (500, 16, 16, 3) and labels.shape == (500,) and not images.any()
