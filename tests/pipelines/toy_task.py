"""A diffusion task whose network is one line and whose guidance has a closed form, for this folder's tests."""
from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.diffusion import process, scales
from diffusion_jax.models.cond import Label
from diffusion_jax.tasks.diffusion import Diffusion

SHAPE = (4, 4, 2)
CLASSES = 3
PROCESSES = {"ddpm": process.DDPM(), "flow": process.Flow(), "cosine": process.Cosine(), "edm": process.EDM()}


class Affine(nn.Module):
    """x0 = tanh(x) / 4 + m(cond) ramp(height): affine in m, so that guidance by w does what moving m to n + w (m - n) does.

    Attributes:
      learned: put out as many channels again, the raw variance 0.
      calls: whether to count the calls of the running program in `COUNT`.
    """

    learned: bool = False
    calls: bool = False

    @nn.compact
    def __call__(self, x, noise, cond):
        if self.calls:
            jax.debug.callback(COUNT.append, len(x))
        gain = self.param("gain", nn.initializers.constant(0.25), ())
        x0 = gain * jnp.tanh(x)
        if "vec" in cond:
            ramp = jnp.linspace(0.5, 1.5, x.shape[1])[None, :, None, None]
            x0 = x0 + jnp.mean(cond["vec"], axis=-1)[:, None, None, None] * ramp
        return jnp.concatenate([x0, jnp.zeros_like(x0)], axis=-1) if self.learned else x0


COUNT: list[int] = []


def make(name: str = "ddpm", cond: nn.Module | None = None, calls: bool = False, **options) -> Diffusion:
    """The task on a process by name."""
    learned = options.get("variance", "").startswith("learned")
    given = {"model": Affine(learned, calls), "cond": cond or Label(CLASSES, 4), "process": PROCESSES[name], "scale": scales.X0()}
    return Diffusion(**given | {"shape": SHAPE} | options)


def parameters(*means: float) -> dict:
    """Parameters in which class i is embedded as means[i], and no class as the last of them."""
    table = jnp.asarray(means)[:, None] + jnp.array([[-0.3, 0.1, 0.4, -0.2]])         # spread for CADS to rescale to
    return {"model": {"gain": jnp.float32(0.25)}, "cond": {"table": table}}
