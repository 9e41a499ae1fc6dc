"""What every task on images asks of a batch."""
from __future__ import annotations

from diffusion_jax.build import ConfigError
from diffusion_jax.types import Raw


def check_shape(batch: Raw, shape: tuple[int, int, int]) -> None:
    """Raises ConfigError where the images of a batch, [B, H, W, C], have another shape than the task's (H, W, C)."""
    if batch["image"].shape[1:] != shape:
        raise ConfigError(f"the data's images are {batch['image'].shape[1:]}, task.shape is {shape}: change one of them")


def check_output(made: tuple[int, ...], shape: tuple[int, ...], learned_variance: bool = False) -> None:
    """Refuses a network that puts out something else than it is trained to match: a mean over both would broadcast, silently.

    Args:
      made: the shape of what the network puts out for one example.
      shape: of the example.
      learned_variance: whether it puts out the variance as well, in as many channels again.

    Raises:
      ConfigError: says what it puts out and what it should.
    """
    wanted = (*shape[:-1], shape[-1] * (1 + learned_variance))
    if tuple(made) != wanted:
        also = ", the variance in as many again" if learned_variance else ""
        raise ConfigError(f"the network puts out {tuple(made)} where {wanted} is asked: task.shape is {tuple(shape)}{also}; "
                          "change task.shape or the network's channels (model.channels, model.learn_sigma)")
