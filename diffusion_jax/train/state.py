"""The state of a training run and the task that it trains, both made from a configuration.

    state_0 = (step = 0, params = project(init(key)), opt_state = optimizer.init(params), ema = {name: params}, memory)      (1)

(1) is pure and holds no data, so `jax.jit(create, ..., out_shardings=...)` makes a model that no single device could hold, each
device filling only its own shard.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.build import ConfigError, build
from diffusion_jax.train.ema import Profile
from diffusion_jax.train.powersgd import Compressed
from diffusion_jax.types import Array, Key, Params, Raw, Task, TrainState

STEM = (jax.tree_util.DictKey("stem"), jax.tree_util.DictKey("kernel"))


def plain(config: Any) -> dict[str, Any]:
    """A config (ConfigDict or mapping) as the JSON it is stored as: tuples become lists, references their values.

    Raises:
      ConfigError: something in it is not JSON.
    """
    try:
        return json.loads(json.dumps(config.to_dict() if hasattr(config, "to_dict") else dict(config)))
    except TypeError as error:
        raise ConfigError(f"a config holds JSON only (name objects as 'diffusion_jax.<module>:<Name>'): {error}") from None


def task_of(config: Any) -> Task:
    """Builds `config['task']`, giving it `config['model']` (built first) as its argument `model` where the config has one.

    Args:
      config: a whole run's config; read from a checkpoint it is input from elsewhere, and `build` refuses foreign symbols.

    Raises:
      ConfigError: no 'task', or anything that `build` refuses.
    """
    config = plain(config)
    if "task" not in config:
        raise ConfigError(f"the config has no 'task'; it has: {', '.join(sorted(config)) or 'nothing'}")
    parts = {"model": build(config["model"])} if "model" in config else {}
    return build(config["task"], **parts)


def create(task: Task, optimizer: optax.GradientTransformation | Compressed, emas: Mapping[str, Profile], key: Key, batch: Raw,
           initial: Params | None = None) -> TrainState:
    """The state before the first update, (1). Pure and jittable.

    Args:
      task: what to train. Its parameters are nested dicts of arrays, so that a checkpoint folder can be read without its code.
      optimizer: any optax transformation.
      emas: name -> profile; each average starts as an exact copy of the parameters.
      key: draws the parameters.
      batch: gives shapes only.
      initial: the parameters to start from, in place of drawn ones.

    Raises:
      ConfigError: initial parameters that are not this task's; an average is called 'params', which `checkpoint.load` keeps for
        the parameters themselves.
      TypeError: the task's parameters are not nested dicts.
    """
    if "params" in emas:
        raise ConfigError("no average may be called 'params': that is the name of the parameters themselves")
    params = task.project(task.init(key, batch) if initial is None else _fitting(task, key, batch, initial))
    for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not path or not all(isinstance(part, jax.tree_util.DictKey) for part in path):
            raise TypeError(f"a task's parameters are nested dicts of arrays, found {jax.tree_util.keystr(path) or 'an array'}")
    ema = {name: jax.tree.map(jnp.copy, params) for name in emas}      # copies: the step donates every buffer once
    opt_state, memory = optimizer.init(params), dict(task.memory())
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=opt_state, ema=ema, memory=memory)


def _fitting(task: Task, key: Key, batch: Raw, initial: Params) -> Params:
    """`initial`, if it has the tree and the shapes of the task's parameters, but for channels added to a network's input.

    Those of a kernel called stem start at zero, so that a network is fine-tuned to see more than it did (2112.10741, sec. 4.2).
    """
    shapes = jax.eval_shape(task.init, key, batch)
    if jax.tree.structure(initial) == jax.tree.structure(shapes):
        initial = jax.tree_util.tree_map_with_path(_widened, initial, shapes)
    found, wanted = ({jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
                     for leaves in map(jax.tree.leaves_with_path, (initial, shapes)))
    for path in sorted(found.keys() | wanted.keys()):
        if found.get(path) != wanted.get(path):
            raise ConfigError(f"the initial weights do not fit the model: {path} is {found.get(path, 'missing')}, "
                              f"the config's is {wanted.get(path, 'not there')}")
    return initial


def _widened(path: tuple, leaf: Array, want: jax.ShapeDtypeStruct) -> Array:
    """`leaf`, with zeros for the input channels that a stem's kernel [h, w, C, F] lacks."""
    added = want.shape[2] - leaf.shape[2] if path[-2:] == STEM and leaf.ndim == want.ndim == 4 else 0
    return jnp.pad(leaf, ((0, 0), (0, 0), (0, added), (0, 0))) if added > 0 else leaf
