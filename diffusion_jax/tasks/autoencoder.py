"""The autoencoder task: the first stage of latent diffusion, trained against a discriminator (tasks/autoencoder_loss.py).

    loss = G(model, stop(disc)) + D(stop(model), disc)                                                               (1)
    G = nll + c w f gan + k KL      for a KL autoencoder, KL summed over a latent and averaged over the batch         (2)
    G = nll + c w f gan + k codebook        for a VQ                                                                 (3)

One loss with both stops has the gradients of both players, so one optimiser state trains them: `train.optim:partition` gives each
its own optimiser. f of (2) depends on the step, which is the task's memory; so is, for a VQ, how often each code was used,

    counts <- 0.99 counts + 0.01 share of each code,   perplexity = exp(entropy of counts),   usage = share with counts > 0    (4)

where a code counts as used while a single use within the last few hundred steps remains of it.

A latent diffusion model wants latents of about unit variance: x = (z - shift) scale, where mode `encode` measures both (5).
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax.core import meta

from diffusion_jax.build import ConfigError
from diffusion_jax.models.lpips import LPIPS
from diffusion_jax.models.tae import TAE
from diffusion_jax.models.vae import KL, VQ, Posterior
from diffusion_jax.nn.conv import convolve
from diffusion_jax.nn.tiles import tiled
from diffusion_jax.tasks.autoencoder_loss import Losses
from diffusion_jax.tasks.images import check_output, check_shape
from diffusion_jax.types import Array, Key, Memory, Metrics, Params, Raw

DECAY = 0.99
SEEN = DECAY**500
UNTRAINED = "untrained_features"
"""The name of a perceptual distance whose network nobody trained."""


@dataclass(frozen=True)
class Perceptual:
    """LPIPS with its published weights, frozen, in the loss of an autoencoder or discrete VAE; the parameters are {'model': ...}.

    Attributes:
      model: the network.
    """

    model: LPIPS = LPIPS()

    noun: ClassVar[str] = "a perceptual distance"

    def check(self, shape: tuple[int, int, int], weight: float) -> None:
        """Raises ConfigError where it would change nothing, or cannot see images (H, W, C) of this shape."""
        if not weight:
            raise ConfigError("perceptual_weight is 0, so LPIPS would do nothing: give a weight, or no first_stage")
        if not self.model.takes(shape):
            raise ConfigError(f"LPIPS sees images of 1 or 3 channels and {self.model.smallest} pixels or more, not "
                              f"{'x'.join(map(str, shape))}: leave first_stage out")

    def distance(self, frozen: Params, x: Array, y: Array) -> Array:
        """d(x, y) [B] of images x and y [B, H, W, C] in [-1, 1].

        Raises:
          ConfigError: `frozen`, of `Task.loss`, is without its weights.
        """
        if not frozen or "first_stage" not in frozen:
            raise ConfigError("LPIPS needs its weights: config.first_stage=lpips=vgg, or the folder that they were imported to")
        return self.model.apply({"params": frozen["first_stage"]["model"]}, x, y)


@dataclass(frozen=True)
class Autoencoder:
    """Trains and applies an autoencoder; the parameters are {'model': ..., 'disc': ...}, without losses 'model' alone.

    Attributes:
      model: the autoencoder.
      shape: (H, W, C) of one image in training; others can be encoded.
      losses: what it is trained by; None for one that came trained.
      weight: k of (2) and (3).
      scale, shift: of (5), one number or one for each channel of the latent.
      black: what the network takes for black, where white is 1: -1, or 0 as EDM2 uses Stable Diffusion's. Not in training.
      first_stage: LPIPS with published weights in place of `losses.perceptual`; config.first_stage names its folder, or is
        'lpips=vgg', that of the installed package.
    """

    model: KL | VQ | TAE
    shape: tuple[int, int, int]
    losses: Losses | None = None
    weight: float = 1e-6
    scale: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0
    black: float = -1.0
    first_stage: Perceptual | None = None

    noun: ClassVar[str] = "an autoencoder"
    needs = ()
    makes = ("image",)
    num_classes = 0

    def init(self, key: Key, batch: Raw) -> Params:
        """Fresh parameters; of the batch only shapes matter.

        Raises:
          ConfigError: the images have another shape than the task, or the network's have; what `Perceptual.check` refuses.
        """
        check_shape(batch, self.shape)
        if self.first_stage is not None and self.losses is not None:
            self.first_stage.check(self.shape, self.losses.perceptual_weight)
        x = jnp.zeros((1, *self.shape))
        k_model, k_disc = jax.random.split(key)
        out, variables = self.model.init_with_output(k_model, x)
        check_output(out.shape[1:], self.shape)
        params = {"model": variables["params"]}
        return params if self.losses is None else params | {"disc": self.losses.disc.init(k_disc, x)["params"]}

    @property
    def undivided(self) -> str:
        """Why a batch cannot be trained on in parts: the losses are no means over images."""
        return "" if self.losses is None else "the adaptive weight, and the norms of the discriminator, are those of all of it"

    def memory(self) -> Memory:
        """The steps done, and for a VQ the counts of (4)."""
        counts = {"counts": jnp.zeros(self.codes)} if self.codes else {}
        return {"step": jnp.zeros((), jnp.int32)} | counts

    def project(self, params: Params) -> Params:
        """The identity."""
        return params

    def loss(self, params: Params, frozen: Params, batch: Raw, key: Key, train: bool) -> tuple[Array, Metrics]:
        """(1), and its parts: 'psnr' in dB, 'grad_nll' and 'grad_gan' the norms of the adaptive weight, which is 'd_weight'.

        Raises:
          ConfigError: the task has no losses.
        """
        if self.losses is None:
            raise ConfigError("this autoencoder came trained, without losses: give its task 'losses' to train it on")
        memory = frozen["memory"] if frozen and "memory" in frozen else self.memory()
        k_draw, k_drop = jax.random.split(key)
        x, rngs = batch["image"], {"dropout": k_drop} if train else {}
        y, seen, parts = self.model.apply({"params": params["model"]}, x, k_draw, method="train", rngs=rngs)
        final = meta.unbox(params["model"]["decoder"]["final_conv"])      # not by flax, which opens what train/gather.py boxes

        def last(seen: Array, kernel: Array) -> Array:
            return convolve((1, 1), seen, kernel) + final["bias"][None, None, None]

        losses, weights, name = self._perceptual(frozen, x, memory["step"])
        loss, logs = losses.generator(last, seen, final["kernel"], x, params["disc"], weights, memory["step"])
        of_disc, disc_logs = losses.discriminator(x, y, params["disc"], memory["step"])
        term, term_logs, counts = self._bottleneck(parts, memory)
        logs = {name if key == "perceptual" else key: value for key, value in (logs | disc_logs | term_logs).items()}
        logs["psnr"] = 10 * jnp.log10(4 / jnp.mean(jnp.square(x - y)))
        if train:
            logs["memory"] = {"step": memory["step"] + 1} | counts
        return loss + self.weight * term + of_disc, logs

    def _perceptual(self, frozen: Params, x: Array, step: Array) -> tuple[Losses, Params, str]:
        """The losses, the weights of their perceptual network, and what its distance is called."""
        if self.first_stage is not None:
            return replace(self.losses, perceptual=self.first_stage.model), frozen["first_stage"]["model"], "lpips"
        if self.losses.perceptual is None:
            return self.losses, {}, UNTRAINED
        key = jax.random.key(jnp.minimum(step, 0))                # 0, but XLA does not know: it would draw them while compiling
        return self.losses, self.losses.perceptual.init(key, x[:1], x[:1])["params"], UNTRAINED

    def _bottleneck(self, parts: Mapping[str, Array], memory: Memory) -> tuple[Array, Metrics, Memory]:
        """KL of (2) or codebook of (3), what is logged of it, and the next counts of (4)."""
        if "kl" in parts:
            term = jnp.mean(parts["kl"])
            return term, {"kl": term}, {}
        index = parts["index"].reshape(-1)
        share = jnp.zeros_like(memory["counts"]).at[index].add(1 / index.size)
        counts = DECAY * memory["counts"] + (1 - DECAY) * share
        lately = counts / jnp.sum(counts)
        entropy = -jnp.sum(lately * jnp.log(jnp.where(lately > 0, lately, 1)))
        usage = jnp.mean(counts > SEEN * (1 - DECAY) / index.size)
        logs = {"codebook": parts["codebook"], "perplexity": jnp.exp(entropy), "usage": usage}
        return parts["codebook"], logs, {"counts": counts}

    def posterior(self, params: Params, images: Array) -> Posterior:
        """The distribution of the latents of images [B, H, W, C] in [-1, 1], not yet scaled."""
        seen = self.black + (1 - self.black) * (images + 1) / 2
        return self.model.apply({"params": params["model"]}, seen, method="encode")

    @property
    def codes(self) -> int:
        """The size of the codebook; 0 where there is none."""
        return self.model.codes if isinstance(self.model, VQ) else 0

    def as_coder(self) -> VQCodes:
        """The codes of a VQ.

        Raises:
          ConfigError: an autoencoder without a codebook.
        """
        return VQCodes(self)

    def prepare(self, params: Params, raw: Raw, key: Key | None = None) -> Raw:
        """A batch with drawn latents, or without a key their means, in the place of 'image' [B, H, W, C]."""
        images = raw["image"]
        eps = None if key is None else jax.random.normal(key, self._latents(images))
        return {**raw, "image": self.encode(params, images, eps)}

    def blank(self, raw: Raw) -> Raw:
        """A batch with zeros, of the shape of latents, in the place of 'image'."""
        return {**raw, "image": jnp.zeros(self._latents(raw["image"]))}

    def _latents(self, images: Array) -> tuple[int, ...]:
        """The shape [B, h, w, c] of the latents of images [B, H, W, C]."""
        return len(images), *self.model.latent_shape(*images.shape[1:3])

    def encode(self, params: Params, images: Array, eps: Array | None = None) -> Array:
        """Images [B, H, W, C] in [-1, 1] -> latents x of (5) [B, h, w, c], drawn with eps, standard normal; means without."""
        posterior = self.posterior(params, images)
        return self.scaled(posterior.mean if eps is None else posterior.sample(eps))

    def decode(self, params: Params, x: Array, tile: int = 0) -> Array:
        """Latents x of (5) [B, h, w, c] -> images [B, H, W, C], about [-1, 1].

        Args:
          params, x: the parameters and the latents.
          tile: side of the latent's tiles that are decoded at a time, which overlap by a quarter; 0 for the whole.
        """
        def decode(z: Array) -> Array:
            made = self.model.apply({"params": params["model"]}, z, method="decode")
            return 2 * (made - self.black) / (1 - self.black) - 1

        z = x / _row(self.scale) + _row(self.shift)
        return tiled(decode, z, tile, tile // 4) if tile else decode(z)

    def scaled(self, z: Array) -> Array:
        """(5): z [B, h, w, c] as a diffusion model sees it."""
        return (z - _row(self.shift)) * _row(self.scale)


@dataclass(frozen=True)
class VQCodes:
    """The tokens of a VQ autoencoder: the rows of its codebook that are nearest.

    Attributes:
      task: the autoencoder's.

    Raises:
      ConfigError: an autoencoder without a codebook.
    """

    task: Autoencoder

    def __post_init__(self):
        if not self.task.codes:
            raise ConfigError(f"a {type(self.task.model).__name__} autoencoder has no codes: "
                              "take a VQ or a discrete VAE")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.task.shape

    @property
    def codes(self) -> int:
        """The size of the codebook."""
        return self.task.codes

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.task.model.latent_shape(*self.shape[:2])[:2]

    def encode(self, params: Params, images: Array) -> Array:
        """The nearest codes, int32 [B, h * w]."""
        h = self.task.posterior(params, images).mean
        index = self.task.model.apply({"params": params["model"]}, h, method="quantize").index
        return index.reshape(len(images), -1)

    def decode(self, params: Params, codes: Array) -> Array:
        """Images of codes [B, h * w]."""
        variables = {"params": params["model"]}
        z = self.task.model.apply(variables, codes.reshape(-1, *self.grid), method="lookup")
        return self.task.model.apply(variables, z, method="draw")[0]


def _row(value: float | tuple[float, ...]) -> Array:
    """One number, or one for each channel, as [1, 1, 1, c]."""
    return jnp.asarray(value, jnp.float32).reshape(1, 1, 1, -1)
