"""The discrete VAE task: reconstruction through a relaxed choice of codes (Ramesh et al. 2021, arXiv 2102.12092, appendix A).

    g    ~ Gumbel,   z = softmax((logits + g) / tau)                                  (1)      Jang et al., Maddison et al. 2016
    kl   = sum_places KL(softmax(logits) || uniform)                                  (2)
    loss = (sum_pixels rec(x, decode(z)) + beta kl) / (H W C)                         (3)      the paper's normalisation
           + balance KL(mean_batch,places softmax(logits) || uniform)
           + perceptual_weight d(x, decode(z))

averaged over the batch. The term of balance is not the paper's. (2) is the information in the codes plus that divergence, which
says how unevenly they are used: beta alone cannot ask for many codes without asking for uncertain ones. On small data, where all
but a few codes die in the first updates, `balance` does. The last term, d = LPIPS (models/lpips.py) of the images as they are and
the pixels that the decoder means, is not the paper's either: pixel by pixel, a blot is as near as the shape that it stands for.

rec is -ln p of the logit-Laplace distribution, (x - x')^2, |x - x'|, or the smooth L1 norm of them. With `straight_through` the
decoder sees the one-hot of the largest entry of z, and the gradient is that of z.

Over a run, with c the number of updates done, tau and beta go from one value to another along half a cosine:

    v(c) = b + (a - b) (1 + cos(pi min(c / n, 1))) / 2                                (4)

A density of pixels that are often exactly equal, the white around an emoji, grows without bound as b goes to 0. With `levels` L
the pixels that it is taken of are spread evenly over the width of their gray value, x + u / (L - 1) with u in [-1, 1], as a
likelihood of discrete data wants it (Theis et al. 2016, arXiv 1511.01844, section 3.1); the encoder sees them as they are.

The paper has tau from 1 to 1/16 in 150,000 updates (linear annealing diverges, it says) and beta from 0 to 6.6 in 5,000.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.diffusion.losses import mean_flat
from diffusion_jax.tasks.autoencoder import Perceptual
from diffusion_jax.tasks.images import check_output, check_shape
from diffusion_jax.types import Array, Key, Memory, Metrics, Params, Raw


@dataclass(frozen=True)
class Anneal:
    """(4): from `start` to `end` in `steps` updates.

    Raises:
      ConfigError: less than one step.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self):
        if self.steps < 1:
            raise ConfigError(f"annealing takes at least one step, got {self.steps}")

    def __call__(self, count: Array) -> Array:
        """The value after `count` updates."""
        return self.end + (self.start - self.end) * (1 + jnp.cos(jnp.pi * jnp.clip(count / self.steps, 0, 1))) / 2


def l2(d: Array) -> Array:
    """d^2."""
    return d**2


def smooth_l1(d: Array) -> Array:
    """d^2 / 2 where |d| < 1, |d| - 1/2 beyond."""
    return jnp.where(jnp.abs(d) < 1, d**2 / 2, jnp.abs(d) - 0.5)


DISTANCES = {"l2": l2, "l1": jnp.abs, "smooth_l1": smooth_l1}
LOSSES = ("logit_laplace", *DISTANCES)


@dataclass(frozen=True)
class DiscreteVAE:
    """Trains and applies a network that turns images into tokens; the parameters are {'model': ...}.

    Attributes:
      model: `models.dvae:DVAE` or `models.dvae_codebook:CodebookVAE`.
      shape: (H, W, C) of one image.
      reconstruction: rec of (3): 'logit_laplace' (DVAE only), 'l2', 'l1' or 'smooth_l1'.
      temperature: tau.
      beta: of (3).
      straight_through, balance: see the top of this file.
      levels: L, gray values that a channel has: 256 in files of 8 bits; 0 takes pixels as they are. In training only.
      reinmax: with straight_through, the gradient of second order of Liu et al. 2023 (arXiv 2304.08612, algorithm 2).
      first_stage: LPIPS with published weights; config.first_stage names its folder, or is 'lpips=vgg'. In training only.
      perceptual_weight: of (3), where there is a first stage.

    Raises:
      ConfigError: an unknown reconstruction, or one that the network has no output for; fewer than 6 levels.
    """

    model: nn.Module
    shape: tuple[int, int, int]
    reconstruction: str = "logit_laplace"
    temperature: Anneal = Anneal(1.0, 1 / 16, 150_000)
    beta: Anneal = Anneal(0.0, 6.6, 5_000)
    straight_through: bool = False
    reinmax: bool = False
    balance: float = 0.0
    levels: int = 0
    first_stage: Perceptual | None = None
    perceptual_weight: float = 0.0

    noun: ClassVar[str] = "a discrete VAE"
    needs = ()
    num_classes = 0

    def __post_init__(self):
        if self.reconstruction not in LOSSES:
            raise unknown("reconstruction", self.reconstruction, LOSSES)
        if self.reconstruction == "logit_laplace" and not self.model.mapped:
            raise ConfigError("logit_laplace needs a network that puts out (mu, ln b): DVAE; this one has l2, l1 and smooth_l1")
        if self.levels and self.levels < 6:
            raise ConfigError(f"levels are gray values, 6 at least (the pixel map has no room for wider ones): got {self.levels}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.shape[0] // self.model.factor, self.shape[1] // self.model.factor

    @property
    def codes(self) -> int:
        """The size of the codebook."""
        return self.model.codes

    def as_coder(self) -> DiscreteVAE:
        """Itself: it makes codes of images (tasks/kinds.py:Coder)."""
        return self

    def init(self, key: Key, batch: Raw) -> Params:
        """Fresh parameters; of the batch only shapes matter.

        Raises:
          ConfigError: the images have another shape than the task, or the network's have; what `Perceptual.check` refuses.
        """
        check_shape(batch, self.shape)
        if self.first_stage is not None:
            self.first_stage.check(self.shape, self.perceptual_weight)
        params = {"model": self.model.init(key, jnp.zeros_like(batch["image"][:1]))["params"]}
        codes = jnp.zeros((1, math.prod(self.grid)), jnp.int32)
        check_output(jax.eval_shape(self.decode, params, codes).shape[1:], self.shape)
        return params

    def memory(self) -> Memory:
        """The number of updates: the c of (4)."""
        return {"count": jnp.zeros((), jnp.float32)}

    def project(self, params: Params) -> Params:
        """The identity."""
        return params

    def loss(self, params: Params, frozen: Params, batch: Raw, key: Key, train: bool) -> tuple[Array, Metrics]:
        """(3); while not training, z is the one-hot of the most likely code.

        Logged beside its parts: tau; 'usage', the share of the codebook that the batch uses; 'perplexity', the exponential of the
        entropy of the codes in the batch; 'lpips', d, where there is a first stage.
        """
        return self.overall(params, frozen, self.outputs(params, frozen, batch, key, train), train)

    def outputs(self, params: Params, frozen: Params, batch: Raw, key: Key, train: bool) -> dict[str, Array]:
        """Of each image: 'reconstruction' and 'kl' [B], see `terms`, with a first stage 'lpips' [B]; [B, codes], of the codes,
        'share', their mean probability over places, and 'chosen', how often each is the most likely."""
        logits = self.logits(params, batch["image"])
        tau = self.temperature(self._count(frozen))
        gumbel = jax.random.gumbel(key, logits.shape)
        z = self.relaxed(logits, gumbel, tau) if train else jax.nn.one_hot(jnp.argmax(logits, -1), self.codes)
        x = self.spread(batch["image"], jax.random.fold_in(key, 1)) if train and self.levels else batch["image"]
        out = self.model.apply({"params": params["model"]}, z, method="decode")
        outputs = self._each(x, logits, out)
        if self.first_stage is not None:
            outputs["lpips"] = self.first_stage.distance(frozen, batch["image"], self.model.pixels(out))
        return outputs

    def overall(self, params: Params, frozen: Params, outputs: Params, train: bool) -> tuple[Array, Metrics]:
        """(3) and all that is logged, of the outputs of the whole batch."""
        count = self._count(frozen)
        used = _used(jnp.mean(outputs["chosen"], axis=0))
        metrics = self._total(outputs, self.beta(count)) | {"temperature": self.temperature(count), **used}
        return metrics["loss"], metrics | ({"memory": {"count": count + 1}} if train else {})

    def _count(self, frozen: Params) -> Array:
        """c of (4)."""
        return (frozen or {}).get("memory", self.memory())["count"]

    def spread(self, x: Array, key: Key) -> Array:
        """Pixels [B, H, W, C] somewhere within the width of their gray value."""
        return x + jax.random.uniform(key, x.shape, minval=-1.0, maxval=1.0) / (self.levels - 1)

    def relaxed(self, logits: Array, gumbel: Array, tau: Array | float) -> Array:
        """z of (1), [B, h, w, codes]."""
        soft = jax.nn.softmax((logits + gumbel) / tau)
        if not self.straight_through:
            return soft
        hard, stop = jax.nn.one_hot(jnp.argmax(soft, -1), self.codes), jax.lax.stop_gradient
        if self.reinmax:
            middle = (hard + jax.nn.softmax(logits / tau)) / 2
            middle = jax.nn.softmax(stop(jnp.log(jnp.maximum(middle, 1e-20)) - logits) + logits)
            soft = 2 * middle - jax.nn.softmax(logits) / 2
        return hard + soft - stop(soft)

    def terms(self, params: Params, x: Array, logits: Array, z: Array, beta: Array | float) -> dict[str, Array]:
        """'loss' (3) without d, and its parts 'reconstruction', per pixel and channel, and 'kl', per place, in nats."""
        out = self.model.apply({"params": params["model"]}, z, method="decode")
        return self._total(self._each(x, logits, out), beta)

    def _each(self, x: Array, logits: Array, out: Array) -> dict[str, Array]:
        """`outputs` but d, of pixels x [B, H, W, C], logits [B, h, w, codes] and what the decoder puts out [B, H, W, ...]."""
        if self.reconstruction == "logit_laplace":
            rec = self.model.nll(x, out)
        else:
            rec = DISTANCES[self.reconstruction](x - self.model.pixels(out))
        log_q = jax.nn.log_softmax(logits)
        kl = jnp.sum(jnp.exp(log_q) * log_q, -1) + jnp.log(float(self.codes))                       # [B, h, w]
        chosen = jax.nn.one_hot(jnp.argmax(logits, -1), self.codes)                                 # [B, h, w, codes]
        return {"reconstruction": mean_flat(rec), "kl": mean_flat(kl), "share": jnp.mean(jnp.exp(log_q), axis=(1, 2)),
                "chosen": jnp.mean(chosen, axis=(1, 2))}

    def _total(self, each: Params, beta: Array | float) -> dict[str, Array]:
        """`terms` of `outputs`."""
        rec, kl = jnp.mean(each["reconstruction"]), jnp.mean(each["kl"])
        places, elements = math.prod(self.grid), math.prod(self.shape)
        loss = rec + beta * kl * places / elements
        if self.balance:
            share = jnp.mean(each["share"], axis=0)                                                 # [codes]
            loss = loss + self.balance * (jnp.sum(share * jnp.log(share + 1e-20)) + jnp.log(float(self.codes)))
        parts = {"reconstruction": rec, "kl": kl}
        if "lpips" in each:
            parts["lpips"] = jnp.mean(each["lpips"])
            loss = loss + self.perceptual_weight * parts["lpips"]
        return {"loss": loss, **parts}

    def logits(self, params: Params, images: Array) -> Array:
        """Of the codes, [B, h, w, codes], of images [B, H, W, C] in [-1, 1]."""
        return self.model.apply({"params": params["model"]}, images, method="encode")

    def encode(self, params: Params, images: Array) -> Array:
        """The most likely codes, int32 [B, h * w] row by row, of images [B, H, W, C]."""
        return jnp.argmax(self.logits(params, images), -1).reshape(len(images), -1).astype(jnp.int32)

    def decode(self, params: Params, codes: Array) -> Array:
        """Images [B, H, W, C] in about [-1, 1] of codes [B, h * w]."""
        z = jax.nn.one_hot(codes.reshape(-1, *self.grid), self.codes)
        return self.model.pixels(self.model.apply({"params": params["model"]}, z, method="decode"))


def usage(logits: Array) -> dict[str, Array]:
    """How much of a codebook the most likely codes of logits [..., codes] use: 'usage' 0 ... 1, 'perplexity' 1 ... codes."""
    codes = logits.shape[-1]
    return _used(jnp.mean(jax.nn.one_hot(jnp.argmax(logits, -1).reshape(-1), codes), axis=0))


def _used(share: Array) -> dict[str, Array]:
    """`usage` of the share [codes] that each code has."""
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1)))
    return {"usage": jnp.mean(share > 0), "perplexity": jnp.exp(entropy)}
