"""How often the networks of a pipeline are called for one picture.

    calls = candidates (steps of the sampler x calls in each + best x those of the prior)         (1)

Counted, not derived: a sampler may call twice in one step and guidance asks for two rows at once,
so each is run on a picture of zeros in place of the network, and counts the rows. Of a transformer
each token is a call, and with guidance two.
"""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.samplers import sample
from diffusion_jax.pipelines.dalle import Draw
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.unclip import Prior
from diffusion_jax.types import Array, Cond, Key, Prediction


def calls_of(pipe: Pipeline) -> int:
    """(1), of the networks that predict: neither a classifier that guides or judges is counted, nor
    what skip-layer guidance asks beside."""
    task = pipe.run.task
    if isinstance(pipe.recipe, Draw):
        calls = calls_of_draw(pipe.recipe, task.model.grid**2)
    else:
        calls = calls_of_recipe(pipe.recipe, task, weak=pipe.weak is not None)
    if isinstance(pipe.prior, Prior):
        calls += calls_of_prior(pipe.prior)
    calls += sum(calls_of(larger) for larger in pipe.upsamplers)
    return calls * pipe.candidates


def calls_of_prior(prior: Prior) -> int:
    """Of all embeddings that a prior makes for one picture."""
    task = prior.run.task
    if isinstance(prior.recipe, Draw):
        return prior.best * calls_of_draw(prior.recipe, task.model.length)
    return prior.best * calls_of_recipe(prior.recipe, task)


def calls_of_draw(draw: Draw, tokens: int) -> int:
    """Of so many tokens."""
    return tokens * (2 if draw.guides else 1)


def calls_of_recipe(recipe: Recipe, task: Any, weak: bool = False) -> int:
    """Of one picture of a diffusion model.

    Args:
      recipe: how it samples.
      task: what is sampled from; its network is not run.
      weak: whether guidance leads away from a weaker model.
    """
    rows = []
    static, strengths = recipe.split()

    def denoise(x: Array, t: Array, cond: Cond, key: Key) -> Prediction:
        # Whatever the sampler does at run time, a branch that it does not take counts nothing.
        jax.debug.callback(lambda: rows.append(len(x)))
        return Prediction(x, logvar=x if task.learned_variance else None)

    cond = {"vec": jnp.zeros((1, 2))}
    null = None if strengths.guidance is None or weak else cond
    other = denoise if strengths.guidance is not None and weak else None
    noise = jax.random.normal
    guided = static.make_guidance(task, strengths, null, noise, weak=other)(denoise)
    sampler = static.make_sampler(task, noise)
    times = static.grid(task.process)

    @jax.jit
    def run(x: Array, key: Key) -> Array:
        return sample(guided, sampler, x, times, cond, key)

    run(jnp.zeros((1, *task.shape)), jax.random.key(0)).block_until_ready()
    jax.effects_barrier()
    return sum(rows)
