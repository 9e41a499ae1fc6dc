"""Tasks whose networks are one line and whose guidance has a closed form, and runs of them in folders, for the tests of what
samples.

The networks pose as the module diffusion_jax.toy_pictures and as parts of pages, because a config may name nothing else of the
package.
"""
from __future__ import annotations

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
from stubs import random_params

from diffusion_jax.data.digits import WORDS
from diffusion_jax.diffusion import process, scales
from diffusion_jax.models.cond import Label
from diffusion_jax.parts import KINDS
from diffusion_jax.runs.folder import Model, save_start
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.train.state import plain, task_of

MODULE = "diffusion_jax.toy_pictures"
SHAPE = (4, 4, 2)
CLASSES = 3
PROCESSES = {"ddpm": process.DDPM(), "flow": process.Flow(), "cosine": process.Cosine(), "edm": process.EDM()}


class Affine(nn.Module):
    """x0 = tanh(x) / 4 + m(cond) ramp(height): affine in m, so that guidance by w does what moving m to n + w (m - n) does.

    A smaller image, cond['cat'], is enlarged and added.

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
        if "cat" in cond:
            factor = x.shape[1] // cond["cat"].shape[1]
            x0 = x0 + cond["cat"].repeat(factor, axis=1).repeat(factor, axis=2)
        return jnp.concatenate([x0, jnp.zeros_like(x0)], axis=-1) if self.learned else x0


class TokenMean(nn.Module):
    """raw['tokens'] [B, T] -> {'vec': [B, 1]}, the mean of a number for each token."""

    vocab: int

    keys = droppable = ("tokens",)
    derived = ()
    num_classes = 0

    @nn.compact
    def __call__(self, raw):
        table = self.param("table", nn.initializers.normal(1.0), (self.vocab,))
        return {"vec": jnp.mean(table[raw["tokens"]], axis=1, keepdims=True)}

    def prepare(self, raw, key, noise=jax.random.normal, level=None):
        return raw

    def null(self, raw):
        return {**raw, "tokens": jnp.zeros_like(raw["tokens"])}

    def check(self, raw):
        pass


class Brightness(nn.Module):
    """The network of a classifier: logits [B, num_classes] are the mean of the image times a number for each class."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x, noise, penultimate=False):
        mean = jnp.mean(x, axis=(1, 2, 3))[:, None]
        slope = self.param("slope", nn.initializers.ones, (self.num_classes,))
        return mean if penultimate else mean * slope[None]


class Guess(nn.Module):
    """The network of a prior: x0 = tanh(x) / 4 + gain vec, what the text says."""

    @nn.compact
    def __call__(self, x, noise, cond):
        gain = self.param("gain", nn.initializers.ones, ())
        return 0.25 * jnp.tanh(x) + gain * cond["vec"]


COUNT: list[int] = []

for _network in (Affine, TokenMean, Brightness, Guess):
    _network.__module__ = MODULE
    KINDS[f"{MODULE}:{_network.__name__}"] = "conditioners" if _network is TokenMean else "networks"
sys.modules[MODULE] = sys.modules[__name__]


def unused(self, *arguments):
    """What a stand-in for a task does not need, though its kind has it."""
    raise NotImplementedError


def make(name: str = "ddpm", cond: nn.Module | None = None, calls: bool = False, **options) -> Diffusion:
    """The task on a process by name."""
    learned = options.get("variance", "").startswith("learned")
    parts = {"model": Affine(learned, calls), "cond": cond or Label(CLASSES, 4), "process": PROCESSES[name], "scale": scales.X0()}
    return Diffusion(**parts | {"shape": SHAPE} | options)


def parameters(*means: float, gain: float = 0.25) -> dict:
    """Parameters in which class i is embedded as means[i], and no class as the last of them."""
    table = jnp.asarray(means)[:, None] + jnp.array([[-0.3, 0.1, 0.4, -0.2]])         # spread for CADS to rescale to
    return {"model": {"gain": jnp.float32(gain)}, "cond": {"table": table}}


# Runs -----------------------------------------------------------------------------------------------------------------------


LABEL = {"name": "diffusion_jax.models.cond:Label", "num_classes": 10, "width": 4}
LOW_RES = {"name": "diffusion_jax.models.cond:LowRes", "factor": 2}
TEXT = {"name": f"{MODULE}:TokenMean", "vocab": len(WORDS) + 3}
TOKENIZER = {"name": "diffusion_jax.data.words:Words", "words": ["a", "handwritten", *WORDS], "length": 3}


def data(side: int = 8) -> dict:
    """The section `data` of a page: the digits with their captions."""
    digits = "diffusion_jax.data.digits:Digits"
    decode = {"name": "diffusion_jax.data.image:Decode", "size": side, "channels": 1, "tokenizer": TOKENIZER}
    return {"train": {"name": digits, "split": "train"}, "test": {"name": digits, "split": "test"}, "decode": decode}


def page(*conds: dict, side: int = 8, **sample) -> dict:
    """The page of a run of `Affine` on grey pictures under conditions."""
    joint = {"name": "diffusion_jax.models.cond:Joint", "parts": list(conds)}
    task = {
        "name": "diffusion_jax.tasks.diffusion:Diffusion",
        "cond": conds[0] if len(conds) == 1 else joint,
        "process": {"name": "diffusion_jax.diffusion.process:DDPM"},
        "scale": {"name": "diffusion_jax.diffusion.scales:X0"},
        "shape": [side, side, 1],
    }
    return {"model": {"name": f"{MODULE}:Affine"}, "task": task, "data": data(side), "sample": {"steps": 4, **sample}}


def classifier_page() -> dict:
    """The page of a run of `Brightness`."""
    task = {
        "name": "diffusion_jax.tasks.classifier:NoisyClassifier",
        "process": {"name": "diffusion_jax.diffusion.process:DDPM"},
        "shape": [8, 8, 1],
    }
    return {"model": {"name": f"{MODULE}:Brightness"}, "task": task, "data": data()}


def model_of(config: dict, seed: int = 0) -> Model:
    """A model of a page with random weights."""
    task = task_of(plain(config))
    batch = {"image": jnp.zeros((1, *task.shape)), "label": jnp.zeros(1, jnp.int32), "tokens": jnp.zeros((1, 3), jnp.int32)}
    return Model(random_params(task, batch, seed), None, task)


def write(folder, config: dict, seed: int = 0, step: int = 0):
    """A run's folder with random weights; returns it."""
    save_start(folder, config, model_of(config, seed).params, step)
    return folder
