"""Features of many images: whatever the batches, the devices and the kills."""
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.metrics import extract as e
from diffusion_jax.metrics import figures
from diffusion_jax.metrics.images import Blurred, Pictures

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (45, 6, 6, 1), dtype=np.uint8)
LABELS = np.arange(45) % 3
WEIGHTS = RNG.normal(size=(36, 4)).astype(np.float32)


def see(params, images):
    flat = images.reshape(len(images), -1) / 255
    return {"features": jnp.tanh(flat @ params), "logits": flat @ params}


NETWORK = e.Network("stub", see, WEIGHTS)


def pictures(pixels=PIXELS, labels=LABELS):
    return Pictures(lambda i: {"image": pixels[i], "label": labels[i]}, len(pixels), "test images")


@pytest.mark.parametrize("batch", [8, 16, 20, 45, 100])
def test_batches_and_devices_do_not_matter(tmp_path, batch):
    """8 and 16 are split over the eight devices, the others are not; the last batch is filled up."""
    found = e.extract(NETWORK, pictures(), tmp_path, batch)
    want = np.tanh(PIXELS.reshape(45, -1).astype(np.float64) / 255 @ WEIGHTS)
    np.testing.assert_allclose(found.rows("features"), want, atol=1e-6)
    np.testing.assert_allclose(found.moments("features").cov, np.cov(want.T), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found.labels, LABELS)
    np.testing.assert_array_equal(found.pixels, PIXELS[:batch])
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


def test_blurring_keeps_flat_images_and_smooths_others():
    flat = Pictures(lambda i: {"image": np.full((9, 9, 1), 100, np.uint8)}, 2, "flat")
    dot = np.zeros((9, 9, 1), np.uint8)
    dot[4, 4] = 255
    (batch,) = Blurred(flat, 2.0).batches([0], 2)
    assert (batch["image"] == 100).all()
    (batch,) = Blurred(Pictures(lambda i: {"image": dot}, 1, "dot"), 1.0).batches([0], 1)
    assert batch["image"][0, 4, 4, 0] == round(255 * 0.3989**2) and batch["image"][0, 4, 5, 0] == round(255 * 0.3989 * 0.2420)


def compared(tmp_path, fake, real, labels=LABELS):
    mine, theirs = (e.extract(NETWORK, pictures(pixels, labels[: len(pixels)]), tmp_path / name, 16)
                    for name, pixels in (("fake", fake), ("real", real)))
    return mine, figures.Reference("real", {"features": theirs.moments("features")}, theirs)


def test_equal_sets_are_no_distance_apart_and_copies(tmp_path):
    fake, real = compared(tmp_path, PIXELS, PIXELS)
    found = figures.figures("stub", fake, real)
    assert abs(found["FID[stub]"]) < 1e-6 and found["novelty[stub]"] < 1e-6
    assert found["precision[stub]"] == found["recall[stub]"] == 1
    assert "KID[stub], subsets of 45" in found and "sFID[stub]" not in found
    rows = figures.by_class(fake, real)
    assert [(row["class"], row["samples"], row["coverage"]) for row in rows] == [("0", 15, 1), ("1", 15, 1), ("2", 15, 1)]
    index, distance = figures.nearest(fake.rows("features")[:5], real.found.rows("features"), 2)
    assert (index[:, 0] == np.arange(5)).all() and (distance[:, 1] > 0).all()


def test_what_the_figures_cannot_say_is_said(tmp_path):
    fake, real = compared(tmp_path, PIXELS[:4], PIXELS)
    assert "4 samples do not determine a covariance of 4 features" in figures.warnings(fake, real)[0]
    with pytest.raises(ConfigError, match="no sample of class '2'"):
        figures.by_class(e.extract(NETWORK, pictures(PIXELS[:2], LABELS), tmp_path / "two", 2), real)
    other = figures.Reference("statistics", {"features": e.moments(RNG.normal(size=(9, 7)))})
    with pytest.raises(ConfigError, match="have 7 numbers, those of stub have 4: it was made with another network"):
        figures.figures("stub", fake, other)
