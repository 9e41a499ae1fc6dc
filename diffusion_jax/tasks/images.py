"""What every task on images asks of a batch."""
from __future__ import annotations

from diffusion_jax.build import ConfigError
from diffusion_jax.types import Raw


def check_shape(batch: Raw, shape: tuple[int, int, int]) -> None:
    """Raises ConfigError where the images of a batch, [B, H, W, C], have another shape than the task's (H, W, C)."""
    if batch["image"].shape[1:] != shape:
        raise ConfigError(f"the data's images are {batch['image'].shape[1:]}, task.shape is {shape}: change one of them")
