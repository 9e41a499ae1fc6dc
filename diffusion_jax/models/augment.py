"""A conditioner that augments the pictures of training and tells the network how: for small data sets.

    vec' = vec + W a                                                                    (1)

with the nine numbers a of nn/warp.py, (7), which are 0 wherever pictures are not augmented: in sampling, in editing and in all
that is measured. So the network makes pictures that are neither turned nor stretched, whatever it has been shown (Karras et al.
2022, arXiv 2206.00364, appendix F.2).

W starts at 0. A network that was trained without augmentation is the same function at first, whatever a is: it may go on from its
weights (config.init).
"""
from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.models.cond import optional_keys
from diffusion_jax.nn import warp
from diffusion_jax.nn.linear import Linear
from diffusion_jax.nn.mp import MPLayer
from diffusion_jax.types import Array, Augments, Cond, Conditioner, Key, Noise, Raw

KEY = "augment"
"""Of a batch, the nine numbers [B, 9]; who does not augment leaves it out."""


class Augmented(nn.Module):
    """Another conditioner, and (1). It stands around all others: `Augmented(Joint(...))`.

    Attributes:
      cond: the conditioner, `Nothing()` for none.
      width: channels of the network's vec; those of the embedding where `cond` gives one.
      rate: the share of pictures that are made larger, the share that are turned, and so on; nn/warp.py.
      mirror: the share that are mirrored; 0 for none.
      normalised: whether W is normalised where it is used and starts at N(0, 1), as EDM2's networks need it from step D on.

    Parameters: those of `cond`, and emb, the layer W, of nn/linear.py:Linear or nn/mp.py:MPLayer.

    Raises:
      ConfigError: no augmentation at all; one in another.

    Example:
      Augmented(Label(102, 384), width=384)
    """

    cond: Conditioner
    width: int
    rate: float = 0.12
    mirror: float = 0.5
    normalised: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not (self.rate or self.mirror):
            raise ConfigError("Augmented with rate and mirror 0 augments nothing: leave it out")
        if isinstance(self.cond, Augments):
            raise ConfigError("a conditioner is augmented once: leave out the inner Augmented")

    @property
    def keys(self) -> tuple[str, ...]:
        """Those of the conditioner: nobody has to say that a picture is as it is."""
        return self.cond.keys

    @property
    def derived(self) -> tuple[str, ...]:
        """Those of the conditioner."""
        return self.cond.derived

    @property
    def droppable(self) -> tuple[str, ...]:
        """Those of the conditioner: a picture without its label is augmented all the same."""
        return self.cond.droppable

    @property
    def optional(self) -> tuple[str, ...]:
        """Those of the conditioner."""
        return optional_keys(self.cond)

    @property
    def num_classes(self) -> int:
        """That of the conditioner."""
        return self.cond.num_classes

    @nn.compact
    def __call__(self, raw: Raw) -> Cond:
        """What the conditioner gives, with (1) in 'vec' [B, width]; without raw['augment'] and any condition, [1, width] for all.

        Raises:
          ConfigError: the conditioner's vec has another width.
        """
        cond = dict(self.cond(raw))
        # One for each text: guidance puts both halves of a batch beside each other.
        rows = next((len(value) for value in cond.values()), 1)
        a = raw.get(KEY, jnp.zeros((rows, warp.SIZE)))
        if self.normalised:
            # As for a one-hot vector: the squares of the nine numbers sum to about 1, so that W a has about unit variance.
            how = MPLayer(self.width, name="emb")(warp.SIZE**0.5 * a)
        else:
            how = Linear(self.width, nn.initializers.zeros, use_bias=False, name="emb")(a)
        if "vec" in cond and cond["vec"].shape[-1] != self.width:
            raise ConfigError(f"Augmented has width {self.width}, its conditioner {cond['vec'].shape[-1]}: set the same")
        cond["vec"] = cond["vec"] + how if "vec" in cond else how
        return cond

    def augmented(self, raw: Raw, key: Key) -> Raw:
        """A batch of training: 'image' [B, H, W, C] in [-1, 1] augmented, and raw['augment'] [B, 9] that says how."""
        images: Array = raw["image"]
        a = warp.draws(key, len(images), self.rate, self.mirror)
        # What overshoots between a black and a white pixel would be no picture.
        return {**raw, "image": jnp.clip(warp.warped(images, a), -1, 1), KEY: warp.vector(a)}

    def prepare(self, raw: Raw, key: Key, noise: Noise = jax.random.normal, level: float | None = None) -> Raw:
        """What the conditioner prepares: of the picture as it is, augmented or not."""
        return self.cond.prepare(raw, key, noise, level)

    def null(self, raw: Raw) -> Raw:
        """The conditioner's null condition."""
        return self.cond.null(raw)

    def check(self, raw: Raw) -> None:
        """What the conditioner refuses."""
        self.cond.check(raw)
