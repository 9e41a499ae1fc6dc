"""CLIP: one embedding space for pictures and texts (Radford et al. 2021, arXiv 2103.00020).

With f the image tower, g the text tower, and unit vectors I = f(x) / |f(x)|, T = g(y) / |g(y)|,

    logits_ij = exp(s) I_i . T_j                                                      (1)

The text tower is a causal transformer (models/transformer.py); what it says of a text is read where the text ends. There are two
image towers. A vision transformer (Dosovitskiy et al. 2010.11929) cuts the image into patches and puts a class token before them:

    f(x) = W norm(transformer(norm([class, patches W'] + position))_0)                (2)

The other is a modified ResNet, models/clip_resnet.py.

Weights start as the published code has it: normal in the text tower, narrower in the layers that end a branch the more of them
there are; in the image tower as PyTorch's layers, of which attention's own are Xavier's, without bias.
"""
from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.models.transformer import BlockInit, Transformer
from diffusion_jax.nn.embed import patchify
from diffusion_jax.nn.init import TORCH, XAVIER, Init, normal, torch_bias, zero_bias
from diffusion_jax.nn.linear import torch_linear
from diffusion_jax.nn.norm import LayerNorm
from diffusion_jax.types import Array

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels in [0, 1] that the published towers were trained on."""


class TextState(NamedTuple):
    """What a text tower finds.

    Attributes:
      tokens: [B, T, D], the states that a diffusion model attends to: after the final norm, see `TextTower.skip`.
      pooled: [B, D], the last layer's after the final norm, where the text ends.
      features: [B, F], `pooled` projected into the joint space; `pooled` itself where there is no projection.
      states: the states before the final norm, from the embedding to the last layer, each [B, T, D].
    """

    tokens: Array
    pooled: Array
    features: Array
    states: list[Array]


class ImageState(NamedTuple):
    """What a vision transformer finds.

    Attributes:
      tokens: [B, 1 + patches, D], the last layer's, before the last norm.
      pooled: [B, D], the class token after it.
      features: [B, F], `pooled` projected into the joint space.
    """

    tokens: Array
    pooled: Array
    features: Array


def text_init(width: int, layers: int) -> BlockInit:
    """How the blocks of a text tower start."""
    narrow, wide = (2 * layers * width) ** -0.5, (2 * width) ** -0.5
    return BlockInit(normal(width**-0.5), normal(narrow), normal(wide, torch_bias), normal(narrow, torch_bias))


IMAGE_INIT = BlockInit(qkv=XAVIER, proj=Init(TORCH.kernel, zero_bias))
"""How the blocks of a vision transformer start."""


class TextTower(nn.Module):
    """The text tower; the published ones are those of Stable Diffusion and unCLIP too.

    Attributes:
      features: width of the joint space; None for no projection.
      vocab: number of tokens.
      context: the longest text, in tokens.
      width, layers, heads, hidden, act, eps, dtype: of the transformer.
      end: the token that ends a text, at whose first place it is read; None reads at the place of the largest token, which is the
        end in CLIP's own vocabulary, 'last' reads at the last place.
      skip: layers left out of `TextState.tokens`: 1 for the states before the last layer, which Stable Diffusion 2 sees.
      is_causal: whether tokens see earlier ones only.

    Parameters: token [vocab, D], position [context, D], transformer, norm, proj [D, F].
    """

    features: int | None
    vocab: int = 49408
    context: int = 77
    width: int = 512
    layers: int = 12
    heads: int = 8
    hidden: int | None = None
    act: str = "quick_gelu"
    eps: float = 1e-5
    end: int | str | None = None
    skip: int = 0
    is_causal: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: Array, mask: Array | None = None, length: Array | None = None) -> TextState:
        """tokens [B, T] int -> `TextState`.

        Args:
          tokens: the texts.
          mask: [B, T], False for tokens that none sees.
          length: [B], how long each text is with its end, where that is known; its last token is then where it is read.

        Raises:
          ConfigError: a text longer than the context.
        """
        places = tokens.shape[1]
        if places > self.context:
            raise ConfigError(f"a text of {places} tokens is longer than the tower's context of {self.context}: cut it")
        token = self.param("token", nn.initializers.normal(0.02), (self.vocab, self.width), jnp.float32)
        position = self.param("position", nn.initializers.normal(0.01), (self.context, self.width), jnp.float32)
        x = jnp.take(token, tokens, axis=0, mode="fill", fill_value=jnp.nan).astype(jnp.float32) + position[None, :places]
        options = self.heads, self.hidden, self.act, self.eps, self.is_causal, self.dtype, text_init(self.width, self.layers)
        states = Transformer(self.layers, *options, name="transformer")(x, None if mask is None else mask.astype(bool))
        norm = LayerNorm(self.eps, name="norm")
        seen = norm(states[-1])
        ends = self.ends(tokens) if length is None else length - 1
        pooled = jnp.take_along_axis(seen, ends[:, None, None], axis=1)[:, 0]  # [B, D]
        tokens_out = norm(states[-1 - self.skip]) if self.skip else seen
        return TextState(tokens_out, pooled, _project(self, pooled, self.features), states)

    def ends(self, tokens: Array) -> Array:
        """Where each text ends, [B]."""
        if self.end == "last":
            return jnp.full(len(tokens), tokens.shape[1] - 1)
        return jnp.argmax(tokens if self.end is None else tokens == self.end, axis=1)


class ViT(nn.Module):
    """The vision transformer (2).

    Attributes:
      features: width of the joint space; None for no projection.
      size: side of the image.
      patch: side of a patch, a divisor of `size`.
      width, layers, heads, hidden, act, eps, dtype: of the transformer.
      steps: of a process whose noised images it sees (GLIDE's noised CLIP, arXiv 2112.10741): a token for each step takes the
        place of the class token; 0 for clean images.

    Parameters: patches, cls [D] or [steps, D], position [1 + patches, D], norm_pre, transformer, norm_post, proj [D, F].
    """

    features: int | None
    size: int = 224
    patch: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int | None = None
    act: str = "quick_gelu"
    eps: float = 1e-5
    dtype: str = "float32"
    steps: int = 0

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None) -> ImageState:
        """x [B, size, size, C], normalised, and label [B], the step of each where it has `steps` -> `ImageState`.

        Raises:
          ConfigError: an image of another size, or a step asked of a network without steps, or none of one with them.
        """
        if bool(self.steps) == (label is None):
            raise ConfigError(f"this image tower was made for {self.steps} noise levels: set 'steps' of the tower to the task's")
        check_size(x, self.size)
        h = torch_linear(self.width, use_bias=False, dtype=self.dtype, name="patches")(patchify(x, self.patch))  # [B, T, D]
        init = nn.initializers.normal(self.width**-0.5)
        table = self.param("cls", init, (self.steps, self.width) if self.steps else (self.width,), jnp.float32)
        first = table[None] if label is None else table[jnp.clip(jnp.round(label), 0, self.steps - 1).astype(int)]
        position = self.param("position", init, (h.shape[1] + 1, self.width), jnp.float32)
        first = jnp.broadcast_to(first[:, None], (len(h), 1, self.width))
        h = jnp.concatenate([first, h.astype(jnp.float32)], axis=1)
        h = LayerNorm(self.eps, name="norm_pre")(h + position[None])
        options = self.heads, self.hidden, self.act, self.eps, False, self.dtype, IMAGE_INIT
        tokens = Transformer(self.layers, *options, name="transformer")(h)[-1]
        pooled = LayerNorm(self.eps, name="norm_post")(tokens[:, :1])[:, 0]
        return ImageState(tokens, pooled, _project(self, pooled, self.features))


class CLIP(nn.Module):
    """Both towers and the scale of (1).

    Attributes:
      image: a `ViT` or a models/clip_resnet.py:ResNet; None for a CLIP that came with its text tower alone.
      text: a `TextTower` of the same features.
      mean, std: by which images are normalised, per channel of pixels in [0, 1]; one number is that of every channel.
      temperature: exp(-s) at the start of training.

    Parameters: image, text, logit_scale (s).

    Example:
      model = CLIP(ViT(512), TextTower(512))                         # ViT-B/32
      images, texts, scale = model.apply({'params': params}, x, tokens)     # x [B, 224, 224, 3] in [-1, 1]
    """

    image: nn.Module | None
    text: nn.Module
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    temperature: float = 0.07

    def setup(self):
        """The scale, a parameter that no tower owns."""
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(-np.log(self.temperature)), (), jnp.float32)

    def __call__(self, images: Array, tokens: Array, label: Array | None = None) -> tuple[Array, Array, Array]:
        """images [B, H, W, C] in [-1, 1], tokens [N, T] -> features [B, F], [N, F] as the towers give them, and s.

        A tower with steps takes noised images, of any range, and their steps, label [B].
        """
        return self.encode_image(images, label), self.encode_text(tokens), self.logit_scale

    def encode_image(self, images: Array, label: Array | None = None) -> Array:
        """images [B, H, W, C] in [-1, 1], of the tower's size, and their steps [B], if any -> features [B, F] of any length."""
        mean, std = (jnp.asarray(value, jnp.float32)[None, None, None] for value in (self.mean, self.std))
        x = (images * 0.5 + 0.5 - mean) / std
        return (self.image(x) if label is None else self.image(x, label)).features

    def encode_text(self, tokens: Array) -> Array:
        """tokens [N, T] -> features [N, F] of any length."""
        return self.text(tokens).features


def unit(features: Array) -> Array:
    """Vectors [..., F] of length one, in float32."""
    wide = features.astype(jnp.float32)
    return wide / jnp.linalg.norm(wide, axis=-1, keepdims=True)


def logits(images: Array, texts: Array, scale: Array) -> Array:
    """(1) of features [B, F] and [N, F] of any length and s: [B, N]."""
    return jnp.exp(scale) * jnp.matmul(unit(images), unit(texts).T)


def _project(module: nn.Module, pooled: Array, features: int | None) -> Array:
    """W x for x [B, D], or x itself."""
    if features is None:
        return pooled
    width = pooled.shape[-1]
    return pooled.astype(jnp.float32) @ module.param("proj", nn.initializers.normal(width**-0.5), (width, features), jnp.float32)


def check_size(x: Array, size: int) -> None:
    """Raises ConfigError where images [B, H, W, C] are not of size x size pixels."""
    if x.shape[1:3] != (size, size):
        raise ConfigError(f"this image tower sees {size}x{size} pixels, not {x.shape[1]}x{x.shape[2]}: resize the images")


def _vit(features: int, patch: int, size: int = 224, wide: bool = False) -> dict[str, Any]:
    image = dict(features=features, patch=patch, size=size) | (dict(width=1024, layers=24, heads=16) if wide else {})
    return dict(image=image, text=dict(width=768, heads=12) if wide else {})


def _resnet(features: int, layers: tuple[int, ...], size: int = 224, width: int = 64, text: int = 512) -> dict[str, Any]:
    return dict(image=dict(features=features, layers=layers, size=size, width=width), text=dict(width=text, heads=text // 64))


def _open(features: int, width: int, layers: int, heads: int, hidden: int, text: dict[str, Any]) -> dict[str, Any]:
    image = dict(features=features, patch=14, width=width, layers=layers, heads=heads, hidden=hidden, act="gelu")
    return dict(image=image, text=text | dict(act="gelu"))


_H = dict(width=1024, layers=24, heads=16)
PRESETS = {
    # OpenAI's; accuracy on ImageNet without training on it (arXiv 2103.00020, table 11).
    "RN50":     _resnet(1024, (3, 4, 6, 3)),                                         # 59.6
    "RN101":    _resnet(512, (3, 4, 23, 3)),                                         # 62.2
    "RN50x4":   _resnet(640, (4, 6, 10, 6), 288, 80, 640),                           # 65.8
    "RN50x16":  _resnet(768, (6, 8, 18, 8), 384, 96, 768),                           # 70.5
    "RN50x64":  _resnet(1024, (3, 15, 36, 10), 448, 128, 1024),                      # 73.6
    "ViT-B/32": _vit(512, 32),                                                       # 63.2
    "ViT-B/16": _vit(512, 16),                                                       # 68.6
    "ViT-L/14": _vit(768, 14, wide=True),                                            # 75.3
    "ViT-L/14@336px": _vit(768, 14, 336, wide=True),                                 # 76.2
    # OpenCLIP's on LAION-2B (Cherti et al., arXiv 2212.07143); the text tower of the first is Stable Diffusion 2's.
    "ViT-H/14":    _open(1024, 1280, 32, 16, 5120, _H),                              # 78.0
    "ViT-g/14":    _open(1024, 1408, 40, 16, 6144, _H),                              # 76.6
    "ViT-bigG/14": _open(1280, 1664, 48, 16, 8192, dict(width=1280, layers=32, heads=20)),     # 80.1
}


def preset(name: str, norm: str = "batch") -> dict[str, Any]:
    """What to `build` a published network from: its towers.

    Args:
      name: 'ViT-B/32' for example.
      norm: of a ResNet, 'group' to train one from the start.

    Raises:
      ConfigError: no such network; names the nearest.

    Example:
      dict(name='diffusion_jax.models.clip:CLIP', **preset('ViT-B/32'))
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    image, text = PRESETS[name]["image"], PRESETS[name]["text"]
    resnet = dict(name="diffusion_jax.models.clip_resnet:ResNet", norm=norm)
    tower = resnet if name.startswith("RN") else dict(name=f"{__name__}:ViT")
    return dict(image=tower | image, text=dict(name=f"{__name__}:TextTower", features=image["features"]) | text)
