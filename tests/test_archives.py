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
