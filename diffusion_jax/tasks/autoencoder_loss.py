"""What an autoencoder is trained by: pixels, perception and a discriminator (Esser et al. 2012.09841; Rombach et al. 2112.10752).

With d the perceptual distance of two images, counted at every pixel,

    nll  = total ((|x - x'| + p d(x, x')) / exp(logvar) + logvar)                     (1)      total: a sum over pixels, or a mean
    gan  = -mean D(x')                                                                (2)
    w    = clip(|d nll / d K| / (|d gan / d K| + 1e-4), 0, limit)                     (3)      K: kernel of the last convolution
    loss = nll + c w f gan,      f = 0 before the discriminator's start               (4)

(3) gives both terms the same say in the last layer, whatever their scale. It is also what ruins reconstructions when the
discriminator starts: one that knows nothing yet has a small gradient, so its weight is large. Against that `limit` can be
lowered, f can rise slowly (`ramp`), and the discriminator can learn before anything listens to it (`lead`).
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from diffusion_jax.build import unknown
from diffusion_jax.models import gan
from diffusion_jax.models.gan import Discriminator, Stats
from diffusion_jax.models.lpips import LPIPS
from diffusion_jax.types import Array, Metrics, Params

PIXELS = {"l1": jnp.abs, "l2": jnp.square}
TOTALS = ("sum", "mean")
WEIGHT_EPS = 1e-4


@dataclass(frozen=True)
class Losses:
    """(1) to (4).

    Attributes:
      disc: D.
      perceptual: d; None for none.
      total: of (1), 'sum' over the pixels of an image, as the KL autoencoder's, or 'mean', as the VQ's.
      pixel: 'l1', or 'l2' for the square.
      perceptual_weight: p.
      adversarial: the discriminator's loss, 'hinge' or 'vanilla'.
      disc_weight: c.
      disc_factor: the height of f; it scales the discriminator's own loss too.
      disc_start: steps before f rises.
      ramp: steps over which it does; 0 for at once.
      lead: steps before disc_start at which the discriminator begins to learn.
      limit: of (3); 1e4 in the published code.

    Raises:
      ConfigError: an unknown pixel, total or adversarial.
    """

    disc: Discriminator = Discriminator()
    perceptual: LPIPS | None = None
    total: str = "mean"
    pixel: str = "l1"
    perceptual_weight: float = 1.0
    adversarial: str = "hinge"
    disc_weight: float = 0.5
    disc_factor: float = 1.0
    disc_start: int = 50001
    ramp: int = 0
    lead: int = 0
    limit: float = 1e4

    def __post_init__(self):
        for kind, got, known in (
            ("pixel", self.pixel, PIXELS), ("total", self.total, TOTALS), ("adversarial", self.adversarial, gan.LOSSES),
        ):
            if got not in known:
                raise unknown(kind, got, known)

    def nll(self, x: Array, y: Array, frozen: Params, logvar: Array | float = 0.0) -> tuple[Array, Metrics]:
        """(1) for images x and reconstructions y [B, H, W, C], and its parts."""
        each = PIXELS[self.pixel](x - y)
        distance = jnp.zeros(len(x))
        if self.perceptual is not None:
            distance = self.perceptual.apply({"params": frozen}, x, y)
            each = each + self.perceptual_weight * distance[:, None, None, None]
        weighed = each / jnp.exp(logvar) + logvar
        total = jnp.mean(weighed) if self.total == "mean" else jnp.sum(weighed) / len(x)
        return total, {"rec_loss": jnp.mean(each), "perceptual": jnp.mean(distance)}

    def generator(
        self, last: Callable[[Array, Array], Array], seen: Array, kernel: Array, x: Array, disc: Params, frozen: Params,
        step: Array | int, logvar: Array | float = 0.0, stats: Stats | None = None,
    ) -> tuple[Array, Metrics]:
        """(4), which trains everything before the discriminator.

        Args:
          last: the autoencoder's last convolution, (what it sees, its kernel) -> reconstruction [B, H, W, C].
          seen: what it sees, [B, H, W, D].
          kernel: K.
          x: images [B, H, W, C].
          disc: the discriminator's parameters; no gradient reaches them.
          frozen: those of `perceptual`.
          step: updates done.
          logvar: of (1).
          stats: for the discriminator's norms, None for the batch's own.
        """
        disc, fixed = jax.lax.stop_gradient((disc, (seen, kernel)))

        def from_pixels(y: Array) -> tuple[Array, Metrics]:
            return self.nll(x, y, frozen, logvar)

        def from_disc(y: Array) -> Array:
            return gan.generator(self.disc.apply({"params": disc}, y, stats)[0])

        def norm(loss: Callable[[Array], Array]) -> Array:
            return jnp.linalg.norm(jax.grad(lambda kernel: loss(last(fixed[0], kernel)))(fixed[1]).reshape(-1))

        y = last(seen, kernel)
        (nll, metrics), g = from_pixels(y), from_disc(y)
        by_nll, by_gan = norm(lambda y: from_pixels(y)[0]), norm(from_disc)
        weight = self.disc_weight * jnp.clip(by_nll / (by_gan + WEIGHT_EPS), 0, self.limit)
        factor = gan.started(self.disc_factor, step, self.disc_start, self.ramp)
        return nll + weight * factor * g, metrics | {
            "nll_loss": nll, "g_loss": g, "d_weight": weight, "disc_factor": factor, "grad_nll": by_nll, "grad_gan": by_gan,
        }

    def discriminator(
        self, x: Array, y: Array, disc: Params, step: Array | int, stats: Stats | None = None
    ) -> tuple[Array, Metrics]:
        """What trains the discriminator to tell images x from reconstructions y [B, H, W, C], through which no gradient goes."""
        real, fake = (self.disc.apply({"params": disc}, jax.lax.stop_gradient(image), stats)[0] for image in (x, y))
        factor = gan.started(self.disc_factor, step, self.disc_start - self.lead)
        loss = factor * gan.LOSSES[self.adversarial](real, fake)
        return loss, {"disc_loss": loss, "logits_real": jnp.mean(real), "logits_fake": jnp.mean(fake)}
