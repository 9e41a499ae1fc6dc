"""The parts of unCLIP at their smallest, with weights that nobody trained: a CLIP, a decoder, two priors."""
from __future__ import annotations

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from stubs import random_params

from diffusion_jax.diffusion.process import DDPM
from diffusion_jax.diffusion.scales import X0
from diffusion_jax.models.clip import CLIP, TextTower, ViT
from diffusion_jax.models.prior_ar import ARPrior
from diffusion_jax.models.unclip import ImageText, Text
from diffusion_jax.runs.folder import Model, Run
from diffusion_jax.tasks.clip import Contrastive
from diffusion_jax.tasks.embedder import Embedder
from diffusion_jax.tasks.prior import AutoregressivePrior, DiffusionPrior
from pipelines.toy_task import Guess, data, make

FEATURES = 6
TOWERS = (ViT(FEATURES, size=4, patch=2, width=8, layers=1, heads=2),
          TextTower(FEATURES, vocab=14, context=3, width=8, layers=1, heads=2))
EMBEDDER = Embedder(Contrastive(CLIP(*TOWERS, mean=(0.5,), std=(0.5,)), (4, 4, 1)), empty=(1, 13, 0), components=4)
BATCH = {"image": np.zeros((1, 4, 4, 1), np.float32), "tokens": np.zeros((1, 3), np.int32)}
DECODER = make(cond=ImageText(FEATURES, out=4, width=4, tokens=1), shape=(8, 8, 1), first_stage=EMBEDDER)
PRIOR = DiffusionPrior(Guess(), Text(FEATURES), DDPM(), X0(), (FEATURES,), drop=FrozenDict(with_text=0.5), first_stage=EMBEDDER)
AR = AutoregressivePrior(ARPrior(4, context=3, width=8, depth=1, heads=2), EMBEDDER, drop=0.5)


@functools.cache
def first(seed: int = 0) -> dict:
    """The parameters of the CLIP, with a mean, a deviation and bounds of its codes."""
    params = random_params(EMBEDDER, BATCH, seed)
    row = {"mean": jnp.full(FEATURES, 0.3), "std": jnp.full(FEATURES, 2.0), "basis": jnp.eye(FEATURES)}
    return params | row | {"low": jnp.full(FEATURES, -2.0), "high": jnp.full(FEATURES, 2.0)}


def run(task, seed: int = 0, first_stage: dict | None = None, config: dict | None = None) -> Run:
    """An open run of a task with random weights."""
    params = random_params(task, {name: value[:, :8] for name, value in BATCH.items()} | {"image": _image(task)}, seed)
    return Run(f"runs/{type(task).__name__}", 0, "params", {"data": data()} if config is None else config,
               Model(params, first_stage, task))


def _image(task) -> np.ndarray:
    return np.zeros((1, *(DECODER.shape if task is DECODER else EMBEDDER.shape)), np.float32)


@functools.cache
def runs() -> SimpleNamespace:
    """An open decoder, a diffusion prior and an autoregressive one."""
    return SimpleNamespace(decoder=run(DECODER, 1, first()), prior=run(PRIOR, 2, first()), ar=run(AR, 3, first()),
                           blind=run(DECODER, 1, first(), {}))


@jax.jit
def texts(tokens):
    """CLIP's embeddings [N, F] of tokens [N, L]."""
    return EMBEDDER.embed_text(first(), tokens)["clip_text"]


@jax.jit
def embed(images):
    """CLIP's embeddings [N, F] of images [N, H, W, C] in [-1, 1]."""
    return EMBEDDER.embed(first(), images)
