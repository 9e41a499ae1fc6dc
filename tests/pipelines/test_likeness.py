"""PSNR, SSIM and LPIPS of pairs of pictures: closed forms, and the definition written out pixel by pixel."""
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.pipelines import likeness
from diffusion_jax.pretrained import perceptual

RNG = np.random.default_rng(0)


def written_out(x, y):
    """SSIM of two pictures [H, W] in [0, 1], window by window."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for i in range(5, x.shape[0] - 5):
        for j in range(5, x.shape[1] - 5):
            a, b = (side[i - 5 : i + 6, j - 5 : j + 6] for side in (x, y))
            mean_a, mean_b = np.sum(window * a), np.sum(window * b)
            var_a, var_b = np.sum(window * (a - mean_a) ** 2), np.sum(window * (b - mean_b) ** 2)
            both = np.sum(window * (a - mean_a) * (b - mean_b))
            values.append((2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
                          / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    return np.mean(values)


def test_ssim_is_its_definition():
    x, y = RNG.uniform(size=(2, 2, 13, 14, 3))
    y = (x + y) / 2
    want = [np.mean([written_out(x[n, ..., c], y[n, ..., c]) for c in range(3)]) for n in range(2)]
    np.testing.assert_allclose(likeness.ssim(x, y), want, rtol=1e-9)
    flat = likeness.ssim(np.full((1, 11, 11, 1), 0.2), np.full((1, 11, 11, 1), 0.6))
    np.testing.assert_allclose(flat, (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4))


def test_ssim_is_that_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    x, y = RNG.uniform(size=(2, 24, 20, 3))
    want = metrics.structural_similarity(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, channel_axis=-1)
    np.testing.assert_allclose(likeness.ssim(x[None], y[None]), want, rtol=1e-9)


def test_psnr_in_closed_form():
    x = np.full((2, 3, 3, 1), 0.5)
    np.testing.assert_allclose(likeness.psnr(x, x + np.array([0.1, 0.01]).reshape(2, 1, 1, 1)), [20, 40])
    assert likeness.psnr(x, x).tolist() == [np.inf, np.inf]


class Gap(NamedTuple):
    """In the place of LPIPS: how far two images are apart, times a weight."""

    net: str

    def apply(self, variables, x, y):
        return variables["params"] * jnp.mean(jnp.abs(x - y), axis=(1, 2, 3))


@pytest.mark.parametrize(("side", "names"), [
    (8, ["PSNR (dB)"]), (11, ["PSNR (dB)", "SSIM"]), (16, ["PSNR (dB)", "SSIM", "LPIPS (vgg)"]),
    (32, ["PSNR (dB)", "SSIM", "LPIPS (vgg)", "LPIPS (alex)"]),
])
def test_pictures_have_the_figures_that_their_size_allows(monkeypatch, side, names):
    monkeypatch.setattr(perceptual, "installed", lambda net: net)
    monkeypatch.setattr(perceptual, "packaged", lambda net: (Gap(net), {"vgg": 1.0, "alex": 3.0}[net]))
    x, y = RNG.integers(0, 256, (2, perceptual.PAIRS + 1, side, side, 1), dtype=np.uint8)      # no multiple of what LPIPS sees
    figures = likeness.likeness(x, y)
    assert list(figures) == names
    gap = np.mean(np.abs(np.float64(x) - y), axis=(1, 2, 3)) / 127.5
    for name, factor in (("LPIPS (vgg)", 1), ("LPIPS (alex)", 3)):
        assert name not in names or figures[name] == pytest.approx(factor * gap, rel=1e-5)


def test_what_lies_outside_is_where_the_mask_is_one():
    x, known = np.zeros((2, 4, 4, 3), np.uint8), np.ones((1, 4, 4, 1), np.float32)
    y, known[0, 0] = x.copy(), 0
    y[1, 0], y[1, 2, 2, 1] = 200, 7
    assert likeness.outside(x, y, known) == 7 and likeness.outside(x, y, 0 * known) == 0


def test_what_is_said_of_them():
    line = likeness.line({"PSNR (dB)": 24.123, "SSIM": 0.81234, "LPIPS (vgg)": 0.2})
    assert line == "PSNR 24.12 dB, SSIM 0.8123, LPIPS (vgg) 0.2000"
    outside = likeness.line({"PSNR (dB)": np.inf, "most outside": 0.0})
    assert outside == "PSNR infinite, the same pixels, outside of what was made anew within 0 of 255"
