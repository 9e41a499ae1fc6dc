"""What GLIDE's UNet is conditioned on (Nichol et al. 2021, arXiv 2112.10741): a text, and an image of which a part is known.

The text goes through a transformer without a mask, once per image:

    h    = transformer(where(real, token + position, padding))                        (1)   padding [T, D] takes part in attention
    seq  = norm(h),     vec = W norm(h)_last                                          (2)

seq gives every attention block of the UNet further keys and values, vec is added to the embedding of the noise. The null
condition is the text without any token: T times padding.

Inpainting adds channels to the UNet's input, which fine-tuning starts at zero:

    cat  = [known m, m],    m = 1 where the image is known                            (3)

and erases random rectangles of the training images. The UNet is models/unet.py's.

Layers start as PyTorch's do (nn/init.py); how the published tables were drawn is not known, ours are CLIP's.
"""
from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.models import unet
from diffusion_jax.models.transformer import Transformer
from diffusion_jax.nn.linear import torch_linear
from diffusion_jax.nn.norm import LayerNorm
from diffusion_jax.types import Array, Cond, Key, Noise, Raw

RECTANGLES = 4


class Text(nn.Module):
    """The conditioner (1), (2).

    Attributes:
      vocab: number of tokens; the largest, vocab - 1, fills up a text and is not real.
      context: tokens of a text.
      width, layers, heads: of the transformer.
      out: channels of vec, those of the network's embedding.
      norm: whether there is the norm of (2).
      padding: whether tokens that are not real become rows of `padding`; otherwise they are tokens like others.
      dtype: of the transformer's products.

    Parameters: token [vocab, D], position [context, D], padding [context, D], transformer, norm, proj.
    """

    vocab: int
    context: int
    width: int
    layers: int
    heads: int
    out: int
    norm: bool = True
    padding: bool = True
    dtype: str = "float32"

    keys = droppable = ("tokens",)
    derived = ()
    num_classes = 0

    @nn.compact
    def __call__(self, raw: Raw) -> Cond:
        """raw['tokens'] [B, context] int, and where they are given raw['tokens_mask'], True for real ones -> vec and seq."""
        tokens, init = raw["tokens"], nn.initializers.normal
        table = self.param("token", init(0.02), (self.vocab, self.width), jnp.float32)
        position = self.param("position", init(0.01), (self.context, self.width), jnp.float32)
        x = jnp.take(table, tokens, axis=0, mode="fill", fill_value=jnp.nan) + position[None]
        if self.padding:
            real = raw["tokens_mask"] if "tokens_mask" in raw else tokens != self.vocab - 1
            fill = self.param("padding", init(0.01), (self.context, self.width), jnp.float32)
            x = jnp.where(real.astype(bool)[..., None], x, fill[None])
        h = Transformer(self.layers, self.heads, dtype=self.dtype, name="transformer")(x)[-1]
        if self.norm:
            h = LayerNorm(1e-5, name="norm")(h)
        return {"vec": torch_linear(self.out, name="proj")(h[:, -1]), "seq": h}

    def prepare(self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None) -> Raw:
        """raw itself."""
        return raw

    def null(self, raw: Raw) -> Raw:
        """The batch with texts without any real token."""
        mask = {"tokens_mask": jnp.zeros_like(raw["tokens_mask"])} if "tokens_mask" in raw else {}
        return {**raw, "tokens": jnp.full_like(raw["tokens"], self.vocab - 1), **mask}

    def check(self, raw: Raw) -> None:
        """Refuses tokens of another length or outside the vocabulary.

        Raises:
          ConfigError: says which.
        """
        tokens = np.asarray(raw["tokens"])
        if tokens.ndim != 2 or tokens.shape[1] != self.context:
            raise ConfigError(f"texts are tokens [B, {self.context}], not {tokens.shape}: set the tokenizer's context")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.vocab:
            raise ConfigError(f"token {tokens.max()} is outside 0 ... {self.vocab - 1}: use the tokenizer of this model")


class Inpaint(nn.Module):
    """The conditioner (3). Has no parameters.

    Attributes:
      whole: share of the training images of which nothing is known, so that the network still makes whole images.
    """

    whole: float = 0.1

    keys = derived = ("mask", "known")
    droppable = ()
    num_classes = 0

    def __call__(self, raw: Raw) -> Cond:
        """raw['known'] [B, H, W, C] and raw['mask'] [B, H, W, 1], 1 where it is known -> cat [B, H, W, C + 1]."""
        mask = raw["mask"].astype(jnp.float32)
        return {"cat": jnp.concatenate([raw["known"] * mask, mask], axis=-1)}

    def prepare(self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None) -> Raw:
        """`raw` with 'mask', drawn where it is missing, and 'known', which is 'image' where it is missing."""
        raw = dict(raw)
        if "mask" not in raw:
            raw["mask"] = random_masks(key, raw["image"].shape, self.whole)
        if "known" not in raw:
            raw["known"] = raw["image"]
        return raw

    def null(self, raw: Raw) -> Raw:
        """raw itself: what is known stays known."""
        return raw

    def check(self, raw: Raw) -> None:
        """Refuses masks that are no masks of the images.

        Raises:
          ConfigError: says what they are.
        """
        mask, known = np.asarray(raw["mask"]), np.asarray(raw["known"])
        if mask.shape != (*known.shape[:3], 1) or not ((mask == 0) | (mask == 1)).all():
            raise ConfigError(f"a mask is {(*known.shape[:3], 1)} of 0 and 1 for images {known.shape}, not {mask.shape}")


def random_masks(key: Key, shape: tuple[int, ...], whole: float) -> Array:
    """Masks [B, H, W, 1] for images of `shape`, 0 in one to four random rectangles, and everywhere for a share `whole`."""
    k_count, k_corner, k_whole = jax.random.split(key, 3)
    b, height, width = shape[:3]
    ends = jnp.sort(jax.random.uniform(k_corner, (b, RECTANGLES, 2, 2)), axis=-1)  # [B, rectangles, axis, first and last]
    present = jnp.arange(RECTANGLES)[None] < jax.random.randint(k_count, (b, 1), 1, RECTANGLES + 1)
    inside = []
    for axis, size in enumerate((height, width)):
        place = ((jnp.arange(size) + 0.5) / size)[None, None]
        first, last = ends[:, :, axis, :1], ends[:, :, axis, 1:]
        inside.append((first <= place) & (place <= last))  # [B, rectangles, size]
    erased = jnp.any(inside[0][..., None] & inside[1][:, :, None] & present[..., None, None], axis=1)
    erased = erased | (jax.random.uniform(k_whole, (b, 1, 1)) < whole)
    return 1.0 - erased[..., None].astype(jnp.float32)


_TEXT = {"vocab": 50257, "context": 128, "width": 512, "layers": 16, "heads": 8, "out": 768}
_UNET = {"width": 192, "head_channels": 64, "dropout": 0.1}
PRESETS = {
    # FID of zero-shot MS-COCO at 256x256 (arXiv 2112.10741, table 2) is 12.24 for the model that was not published.
    "glide-base-64": _UNET | {"mults": (1, 2, 3, 4), "depth": 3, "attend": (2, 4, 8)},
    "glide-upsample-64-256": _UNET | {"mults": (1, 1, 2, 2, 4, 4), "depth": 2, "attend": (8, 16, 32)},
}


def preset(name: str, inpaint: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to `build` a published (filtered) network and its conditioner from.

    Args:
      name: 'glide-base-64' or 'glide-upsample-64-256'.
      inpaint: whether it is the one that was fine-tuned for inpainting.

    Raises:
      ConfigError: no such network; names the nearest.

    Example:
      config.model, config.task.cond = preset('glide-base-64')
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    text = {"name": f"{__name__}:Text", **_TEXT}
    low_res = [{"name": "diffusion_jax.models.cond:LowRes", "factor": 4}] if "upsample" in name else []
    return {"name": f"{unet.__name__}:UNet", **PRESETS[name]}, joined(text, [{"name": f"{__name__}:Inpaint"}] * inpaint + low_res)


def joined(text: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
    """The spec of a conditioner of a text and others, if any."""
    return {"name": "diffusion_jax.models.cond:Joint", "parts": [text, *others]} if others else text
