"""Features of many images: whatever the batches, the devices and the kills."""
import numpy as np
import pytest
from pages import tear_writes
from stub_network import LABELS, NETWORK, PIXELS, WEIGHTS, pictures

from diffusion_jax.build import ConfigError
from diffusion_jax.metrics import extract as e
from diffusion_jax.metrics.images import Pictures


@pytest.mark.parametrize("batch", [8, 16, 20, 45, 100])
def test_batches_and_devices_do_not_matter(tmp_path, batch, monkeypatch):
    """8 and 16 are split over the eight devices, the others are not; the last batch is filled up."""
    monkeypatch.setattr(e, "SHOWN", 20)
    found = e.extract(NETWORK, pictures(), tmp_path, batch)
    want = np.tanh(PIXELS.reshape(45, -1).astype(np.float64) / 255 @ WEIGHTS)
    np.testing.assert_allclose(found.rows("features"), want, atol=1e-6)
    np.testing.assert_allclose(found.moments("features").cov, np.cov(want.T), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found.labels, LABELS)
    np.testing.assert_array_equal(found.pixels, PIXELS[:20])
    assert found.has("logits") and not found.has("spatial") and found.count == 45


class Killed(Pictures):
    """Ends in the middle, as a kill would."""

    def batches(self, starts, size):
        for number, batch in enumerate(super().batches(starts, size)):
            if number == 3:
                raise KeyboardInterrupt
            yield batch


def test_what_is_killed_goes_on_where_it_was(tmp_path):
    straight = e.extract(NETWORK, pictures(), tmp_path / "straight", 10)
    with pytest.raises(KeyboardInterrupt):
        e.extract(NETWORK, Killed(pictures().read, 45, "test images"), tmp_path / "killed", 10)
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "killed").iterdir()}
    assert sorted(kept) == ["00000000.npz", "00000010.npz"]
    resumed = e.extract(NETWORK, pictures(), tmp_path / "killed", 10)
    for name in ("features", "logits", "label"):
        np.testing.assert_array_equal(resumed.rows(name), straight.rows(name))
    assert all((tmp_path / "killed" / name).stat().st_mtime_ns == time for name, time in kept.items())


def test_a_batch_is_whole_or_not_there_and_may_be_gone(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tear_writes(patch)
        e.extract(NETWORK, pictures(), tmp_path / "x", 45)
    assert not list((tmp_path / "x").iterdir())
    extracted = e.extract(NETWORK, pictures(), tmp_path / "x", 10)
    extracted.files[1].unlink()
    extracted.forget()
    assert not (tmp_path / "x").exists()


def test_a_damaged_file_is_named(tmp_path):
    found = e.extract(NETWORK, pictures(), tmp_path, 10)
    (tmp_path / "00000020.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ConfigError, match="00000020.npz is damaged .*: remove it"):
        found.rows("features")


def test_images_of_two_sizes_and_none_at_all_are_refused(tmp_path):
    odd = [*PIXELS[:4], PIXELS[4][:5]]
    mixed = Pictures(lambda i: {"image": odd[i]}, 5, "folder")
    with pytest.raises(ConfigError, match="folder: image 4 is 5x6x1, image 0 is 6x6x1: give images of one size"):
        e.extract(NETWORK, mixed, tmp_path, 2)
    with pytest.raises(ConfigError, match="0 images are no batch"):
        e.extract(NETWORK, Pictures(mixed.read, 0, "folder"), tmp_path)


def test_latents_are_no_images(tmp_path):
    for record in ({"image": PIXELS[0].astype(np.float32)}, {"moments": PIXELS[0]}):
        with pytest.raises(ConfigError, match="no images of 8 bits, but perhaps latents: give a --reference"):
            e.extract(NETWORK, Pictures(lambda i, record=record: record, 5, "train data"), tmp_path)
