"""A frozen CLIP as unCLIP's parts see it (Ramesh et al. 2022, arXiv 2204.06125): embeddings, standardised or as tokens.

With f an image's features, m and d the mean and deviation of each channel of y over the training images,

    y  = sqrt(F) f / |f|,  or f itself                what a decoder is conditioned on                            (1)
    x  = (y - m) / d                                  what a diffusion prior makes                                (2)

and with e_1, e_2 ... the principal components of y, the first n of which hold a given share of its variance,

    c_k    = e_k . (y - m)                            sec. 2.2: most variance first                               (3)
    code_k = floor(K (c_k - low_k) / (high_k - low_k))    what an autoregressive prior makes                      (4)
    dot    = the number of those quantiles of y . t / |y||t| over the training pairs that lie below it            (5)

t being the text's embedding. In sampling (5) is drawn from its upper half.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.resize import antialiased
from diffusion_jax.models.clip import TextState, unit
from diffusion_jax.models.unclip import EMPTY, TEXT
from diffusion_jax.tasks.clip import Contrastive
from diffusion_jax.types import Array, Key, Params, Raw

CODES, DOTS = 1024, 32
EXPLAINED = 0.99
"""Of the variance, by the components that are kept: 319 of 1,024 in the paper."""


@dataclass(frozen=True)
class Embedder:
    """The frozen CLIP; the parameters are {'clip', 'mean', 'std' [F], 'basis' [F, F], 'low', 'high' [F], 'dots' [DOTS - 1]}.

    Attributes:
      clip: its task.
      empty: the tokens of the empty text, by their places; the last one fills up.
      components: n of (3), how many of them hold `EXPLAINED` of the variance.
      unit: whether features are brought to one length, (1).

    Example:
      y = embedder.embed(params, images)                            # [B, F], images [B, H, W, C] in [-1, 1]
      embedder.decode(params, embedder.encode(params, y))           # y again, but for the parts of a bucket
    """

    clip: Contrastive
    empty: tuple[int, ...]
    components: int = 0
    unit: bool = True

    noun: ClassVar[str] = "a CLIP with the statistics of its embeddings"
    needs = ("tokens",)
    makes = ("clip_image", *TEXT, *EMPTY)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that the CLIP sees."""
        return self.clip.shape

    @property
    def features(self) -> int:
        """F, the channels of an embedding."""
        return self.clip.model.text.features

    def _scaled(self, features: Array) -> Array:
        return unit(features) * self.features**0.5 if self.unit else features.astype(jnp.float32)

    def embed(self, params: Params, images: Array) -> Array:
        """y of (1), [B, F], of images [B, H, W, C] in [-1, 1], which are brought to the CLIP's size.

        Raises:
          ConfigError: this CLIP came without its image tower.
        """
        if self.clip.model.image is None:
            raise ConfigError("this model came without CLIP's image tower: import a folder that holds image_encoder")
        if images.shape[1:3] != self.shape[:2]:
            images = antialiased(images, *self.shape[:2])
        return self._scaled(self.clip.features(params["clip"], images))

    def embed_text(self, params: Params, tokens: Array) -> Raw:
        """clip_text [N, F], text_states [N, L, D], text_mask [N, L], of tokens [N, L]."""
        tower = self.clip.model.text
        state: TextState = tower.apply({"params": params["clip"]["model"]["text"]}, tokens)
        real = jnp.arange(tokens.shape[1])[None] <= tower.ends(tokens)[:, None]
        return dict(zip(TEXT, (self._scaled(state.features), state.tokens, real), strict=True))

    def texts(self, params: Params, tokens: Array) -> Raw:
        """What `embed_text` finds, and the same of the empty text: all that a prior reads of tokens [N, L]."""
        *first, fill = self.empty
        length = tokens.shape[1]
        row = np.array([*first, *[fill] * length][:length], np.int32)
        both = self.embed_text(params, jnp.concatenate([tokens, jnp.asarray(row)[None]]))      # one program: it compiles sooner
        rows = {name: jnp.broadcast_to(both[own][-1:], (len(tokens), *both[own].shape[1:]))
                for name, own in zip(EMPTY, TEXT, strict=True)}
        return {name: value[:-1] for name, value in both.items()} | rows

    def prepare(self, params: Params, raw: Raw, key: Key | None = None) -> Raw:
        """A batch with clip_image and `texts`; nothing is drawn, and nothing of it is trained through.

        Args:
          params: of this first stage.
          raw: image [B, H, W, C] and tokens [B, L].
          key: not used.
        """
        made = {"clip_image": self.embed(params, raw["image"]), **self.texts(params, raw["tokens"])}
        return {**raw, **jax.lax.stop_gradient(made)}

    def blank(self, raw: Raw) -> Raw:
        """What `prepare` gives, of zeros: for shapes."""

        def prepared(raw: Raw) -> Raw:
            return self.prepare(self.init(jax.random.key(0), raw), raw)

        shapes = jax.eval_shape(prepared, dict(raw))
        return {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}

    def init(self, key: Key, batch: Raw) -> Params:
        """Parameters of the right shapes, of a CLIP that nobody trained."""
        x, width = jnp.zeros((1, *self.shape)), self.features
        row = {name: jnp.zeros(width) for name in ("mean", "low")} | {name: jnp.ones(width) for name in ("std", "high")}
        clip = self.clip.init(key, {"image": x, "tokens": batch["tokens"]})
        return {"clip": clip, "basis": jnp.eye(width), "dots": jnp.zeros(DOTS - 1), **row}

    def standardised(self, params: Params, y: Array) -> Array:
        """x of (2), [B, F]."""
        return (y - params["mean"][None]) / params["std"][None]

    def restored(self, params: Params, x: Array) -> Array:
        """y of x, (2)."""
        return x * params["std"][None] + params["mean"][None]

    def reduced(self, params: Params, y: Array, components: int) -> Array:
        """y [B, F] with what lies along its first principal components alone."""
        basis = params["basis"][:, :components]
        return (y - params["mean"][None]) @ basis @ basis.T + params["mean"][None]

    def encode(self, params: Params, y: Array) -> Array:
        """The codes (4) of y [B, F]: int32 [B, components]."""
        low, high = (params[name][None, : self.components] for name in ("low", "high"))
        place = ((y - params["mean"][None]) @ params["basis"][:, : self.components] - low) / (high - low)
        return jnp.clip(jnp.floor(CODES * place), 0, CODES - 1).astype(jnp.int32)

    def decode(self, params: Params, codes: Array) -> Array:
        """y [B, F] in the middle of the buckets of codes [B, components]."""
        low, high = (params[name][None, : self.components] for name in ("low", "high"))
        c = low + (codes + 0.5) / CODES * (high - low)
        return c @ params["basis"][:, : self.components].T + params["mean"][None]

    def dot(self, params: Params, y: Array, text: Array) -> Array:
        """(5) of y and t [B, F]: int32 [B], 0 ... DOTS - 1."""
        cos = jnp.sum(unit(y) * unit(text), axis=-1)
        return jnp.sum(cos[:, None] >= params["dots"][None], axis=1).astype(jnp.int32)


def statistics(y: np.ndarray, text: np.ndarray) -> tuple[dict[str, np.ndarray], int]:
    """(the parameters of (2) to (5), n of (3)) by the embeddings of training images y [N, F] and of their texts [N, F]."""
    y, text = y.astype(np.float64), text.astype(np.float64)
    mean, std = y.mean(0), y.std(0)
    values, vectors = np.linalg.eigh((y - mean).T @ (y - mean) / len(y))
    order = np.argsort(-values)
    basis, share = vectors[:, order], np.cumsum(values[order]) / values.sum()
    c = (y - mean) @ basis
    low, high = c.min(0), c.max(0)
    wide = np.maximum(high - low, 1e-6)
    cos = (y * text).sum(1) / np.linalg.norm(y, axis=1) / np.linalg.norm(text, axis=1)
    found = {"mean": mean, "std": np.maximum(std, 1e-6), "basis": basis, "low": low, "high": low + wide * (1 + 1e-6),
             "dots": np.quantile(cos, np.arange(1, DOTS) / DOTS)}
    components = min(int(np.searchsorted(share, EXPLAINED)) + 1, y.shape[1])
    return {name: value.astype(np.float32) for name, value in found.items()}, components
