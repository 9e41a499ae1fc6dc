"""The figures of sets of features: which there are, what they are of sets that are known, and what is refused."""
import jax
import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist
from stub_network import LABELS, NETWORK, PIXELS, RNG, pictures

from diffusion_jax.build import ConfigError
from diffusion_jax.metrics import extract as e
from diffusion_jax.metrics import figures
from diffusion_jax.metrics.images import Pictures


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


def test_what_does_not_go_together_is_known_before_the_features_are_there(tmp_path):
    _, real = compared(tmp_path, PIXELS[:4], PIXELS)
    for labels, says in ((np.array([0, 1, 1]), "no sample of class '2'"), (np.zeros(4), "no sample of class '1'")):
        with pytest.raises(ConfigError, match=says):
            figures.check_classes(real, labels)
    for labels in (None, np.arange(9), LABELS):
        figures.check_classes(real, labels)
    figures.check_sizes("stub", {"features": jax.ShapeDtypeStruct((1, 4), np.float32), "other": None}, real)
    with pytest.raises(ConfigError, match="have 4 numbers, those of stub have 5: it was made with another network"):
        figures.check_sizes("stub", {"features": jax.ShapeDtypeStruct((1, 5), np.float32)}, real)


def test_the_nearest_pictures_say_what_class_a_sample_shows():
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], 12)
    reals = np.eye(3)[classes] * 4 + rng.normal(size=(36, 3))
    asked = np.repeat([0, 1, 2], 5)
    fakes = np.eye(3)[(asked + (np.arange(15) % 4 == 0)) % 3] * 4 + rng.normal(size=(15, 3))

    def votes(points, others, mask):
        apart = np.where(mask, np.inf, cdist(points, others, "cosine"))
        nearest = np.argsort(apart, axis=1)[:, :5]
        return [np.bincount(classes[row], 1 / own[row], 3).argmax() for row, own in zip(nearest, apart, strict=True)]

    found = figures.of_classes("stub", (reals, classes), (fakes, asked))
    assert found == {
        "accuracy[stub], nearest": np.mean(votes(fakes, reals, np.zeros((15, 36), bool)) == asked),
        "accuracy[stub], nearest, of the reference": np.mean(votes(reals, reals, np.eye(36, dtype=bool)) == classes),
    }
    assert 0.4 < found["accuracy[stub], nearest"] < 1 and 0.7 < found["accuracy[stub], nearest, of the reference"] <= 1
    assert figures.of_classes("stub", (reals, np.zeros(36)), (fakes, asked)) == {}
    assert figures.of_classes("stub", (reals[:5], classes[:5]), (fakes, asked)) == {}


def in_file(path, **arrays):
    """What an extraction leaves of so many images."""
    np.savez(path, **arrays)
    return e.Found((path,), (0,), len(arrays["features"]))


def test_statistics_alone_give_distances_alone(tmp_path):
    """A shift by a vector is a Frechet distance of its square."""
    features, spatial = np.random.default_rng(0).normal(size=(2, 30, 3))
    fake = in_file(tmp_path / "fake.npz", features=features + 2, spatial=spatial)
    real = figures.Reference("statistics", {"features": e.moments(features), "spatial": e.moments(spatial + 1)})
    found = figures.figures("x", fake, real)
    assert found == pytest.approx({"FID[x]": 12, "sFID[x]": 3})
    assert figures.by_class(fake, real) == []


def test_distances_among_images_are_scipys_and_few_images_give_few_figures():
    real, fake = np.random.default_rng(0).normal(size=(2, 12, 4))
    assert figures.among("x", real, fake)["distance[x]"] == pytest.approx(pdist(fake).mean(), rel=1e-5)
    assert sorted(figures.among("x", real[:1], fake[:2])) == ["distance[x]"]
    assert sorted(figures.among("x", real[:5], fake[:5])) == ["KID[x], subsets of 5", "distance[x]", "novelty[x]"]
    between = cdist(fake, real)
    index, distance = figures.nearest(fake, real, 3)
    np.testing.assert_array_equal(index, np.argsort(between, axis=1)[:, :3])
    np.testing.assert_allclose(distance, np.sort(between, axis=1)[:, :3], rtol=1e-5)


def test_a_row_of_a_class_has_its_name_and_the_share_of_samples_that_look_like_it(tmp_path):
    rng, labels = np.random.default_rng(0), np.array([0, 1] * 4)
    guesses = np.eye(2)[[0, 1, 0, 0, 0, 0, 1, 1]]                              # right: 3 of 4, 2 of 4
    fake = in_file(tmp_path / "fake.npz", features=rng.normal(size=(8, 3)), logits=guesses, label=labels)
    real = in_file(tmp_path / "real.npz", features=rng.normal(size=(8, 3)), label=labels)
    names = Pictures(None, 8, "pets", ("cat", "dog"))
    rows = figures.by_class(fake, figures.Reference("real", {}, real, names))
    assert rows == [{"class": "cat", "samples": 4, "reference": 4, "accuracy": 0.75},
                    {"class": "dog", "samples": 4, "reference": 4, "accuracy": 0.5}]
    # Of a reference without names the samples' own stand, as far as there are any.
    bare = figures.Reference("real", {}, real, Pictures(None, 8, "x.npz"))
    for own, want in ((("ant", "bee"), ["ant", "bee"]), (("ant",), ["ant", "1"]), (None, ["0", "1"])):
        assert [row["class"] for row in figures.by_class(fake, bare, own)] == want
