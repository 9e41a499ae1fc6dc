"""The pixel-space metrics on data whose answers are known."""
import numpy as np

from diffusion_jax.metrics import pixels

RNG = np.random.default_rng(0)
CENTRES = 100 * RNG.normal(size=(3, 4, 4, 1))


def blobs(n, spread=1.0):
    labels = np.arange(n) % 3
    return (CENTRES[labels] + spread * RNG.normal(size=(n, 4, 4, 1))).astype(np.float32), labels


def test_accuracy_counts_the_samples_of_the_class_asked_for():
    train, labels = blobs(60)
    images, asked = blobs(30)
    assert pixels.class_accuracy(images, asked, train, labels) == 1
    asked = np.where(np.arange(30) < 6, (asked + 1) % 3, asked)
    assert pixels.class_accuracy(images, asked, train, labels) == 0.8


def test_novelty_is_zero_for_copies_and_one_for_fresh_data():
    train, _ = blobs(300)
    held_out, _ = blobs(300)
    fresh, _ = blobs(300)
    assert pixels.novelty(train[:50], train, held_out) < 1e-5
    assert abs(pixels.novelty(fresh, train, held_out) - 1) < 0.1


def test_nearest_is_the_smallest_euclidean_distance():
    a, b = blobs(20)[0], blobs(30)[0]
    brute = np.sqrt(((a[:, None] - b[None]) ** 2).sum((2, 3, 4))).min(1)
    np.testing.assert_allclose(pixels.nearest(a, b), brute, rtol=1e-4)


def test_variance_compares_the_spread_of_each_class():
    train, labels = blobs(3000)
    images, asked = blobs(3000, spread=0.5)
    ratios = pixels.class_variance(images, asked, train, labels)
    assert sorted(ratios) == [0, 1, 2]
    np.testing.assert_allclose(list(ratios.values()), 0.25, rtol=0.1)


def test_a_class_of_one_picture_has_no_variance():
    train, labels = blobs(7)
    ratios = pixels.class_variance(train, labels, train[:5], labels[:5])
    assert sorted(ratios) == [0, 1] and labels[:5].tolist() == [0, 1, 2, 0, 1]
