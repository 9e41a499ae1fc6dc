"""Animations: frames as a GIF, or as an MP4 where ffmpeg is there.

Files appear whole or not at all, as in data/pictures.py.
"""
from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.pictures import ANIMATIONS
from diffusion_jax.files import whole

SECONDS = 0.4
"""How long a frame is shown."""
LEAST_SIDE = 128
"""Pixels of the shorter side: smaller frames are enlarged by a whole factor."""
WRITERS = {"imageio": "imageio", "imageio_ffmpeg": "imageio-ffmpeg"}
"""What writes animations, by the names of their modules: the first a GIF, both an MP4."""


def animated(out: str | Path, frames: np.ndarray, seconds: float = SECONDS) -> list[Path]:
    """Writes frames as a GIF and, where imageio-ffmpeg is installed, as an MP4.

    Args:
      out: a file name, whose suffix is replaced.
      frames: uint8 [N, h, w, 1 or 3]; small ones are enlarged.
      seconds: how long each is shown.

    Returns:
      The files written.

    Raises:
      ConfigError: imageio is missing.
    """
    gif, mp4 = (Path(out).with_suffix(suffix) for suffix in ANIMATIONS)
    animate(gif, frames, seconds)
    if find_spec("imageio_ffmpeg") is None:
        print("no MP4: pip install imageio-ffmpeg")
        return [gif]
    animate(mp4, frames, seconds)
    return [gif, mp4]


def animate(out: str | Path, frames: np.ndarray, seconds: float = SECONDS) -> None:
    """Writes frames as the one that the name of the file ends in, .gif or .mp4; see `animated`.

    Raises:
      ConfigError: what `check` refuses.
    """
    check(out)
    import imageio.v3 as imageio

    frames = _as_video(frames)
    with whole(out) as unfinished:
        if Path(out).suffix == ".gif":
            imageio.imwrite(unfinished, list(frames), duration=1000 * seconds, loop=0)
        else:
            options = dict(fps=1 / seconds, macro_block_size=2, plugin="FFMPEG")
            imageio.imwrite(unfinished, frames, **options)


def check(out: str | Path) -> None:
    """Raises ConfigError where what writes a GIF or an MP4 is not installed; for before the work."""
    suffix = Path(out).suffix
    for module in list(WRITERS)[: 1 + (suffix == ".mp4")]:
        if find_spec(module) is None:
            package = WRITERS[module]
            raise ConfigError(f"{out}: {suffix[1:].upper()} needs {package}: pip install {package}")


def _as_video(frames: np.ndarray) -> np.ndarray:
    """uint8 [N, h, w, 1 or 3] -> [N, H, W, 3], large enough to see, its sides even (for MP4)."""
    # By whole factors: video players blur small pictures, and pixels of 8x8 digits are to be seen.
    factor = max(1, LEAST_SIDE // min(frames.shape[1:3]))
    frames = frames.repeat(factor, axis=1).repeat(factor, axis=2)
    if frames.shape[-1] == 1:
        frames = frames.repeat(3, axis=-1)
    odd = ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0))
    return np.pad(frames, odd, mode="edge")
