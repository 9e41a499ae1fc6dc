"""The state of a training run and the task that it trains, both made from a configuration.

    state_0 = (step = 0, params = project(init(key)), opt_state = optimizer.init(params), ema = {name: params}, memory)      (1)

(1) is pure and holds no data, so `jax.jit(create, ..., out_shardings=...)` makes a model that no single device could hold, each
device filling only its own shard.
"""
from __future__ import annotations

import collections
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.build import ConfigError, build, check, check_names, short, unknown
from diffusion_jax.train.ema import Profile
from diffusion_jax.train.powersgd import Compressed
from diffusion_jax.types import Array, Key, Params, Raw, Task, TrainState

DIFFUSION = "diffusion_jax.tasks.diffusion:Diffusion"
AUTOREGRESSIVE = "diffusion_jax.tasks.autoregressive:Autoregressive"
EMBEDDER = "diffusion_jax.tasks.embedder:Embedder"
DIFFUSION_PRIOR = "diffusion_jax.tasks.prior:DiffusionPrior"
AUTOREGRESSIVE_PRIOR = "diffusion_jax.tasks.prior:AutoregressivePrior"
OF_TOKENS = ("text_weight", "image_weight", "first_as_text")
"""Options of `Autoregressive` that said nothing about a prior."""

STEM = (jax.tree_util.DictKey("stem"), jax.tree_util.DictKey("kernel"))


def plain(config: Any) -> dict[str, Any]:
    """A config (ConfigDict or mapping) as the JSON it is stored as, and as this version names its task.

    Tuples become lists, references their values; see `migrated`.

    Raises:
      ConfigError: something in it is not JSON.
    """
    try:
        tree = config.to_dict() if hasattr(config, "to_dict") else config
        tree = json.loads(json.dumps(tree))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError("a config holds JSON only (name objects as "
                          f"'diffusion_jax.<module>:<Name>'): {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"a config is a mapping of sections, got {short(tree)}")
    return migrated(tree)


def stored(config: Any, where: Any) -> dict[str, Any]:
    """The config of a checkpoint, input from elsewhere, as this version names its task.

    Nothing of it is made or imported, so that what it names is refused before that.

    Args:
      config: JSON, as it was read.
      where: its folder, for errors.

    Raises:
      ConfigError: it is none, or has no task, or names what no config may name.
    """
    config = migrated(config)
    try:
        if not isinstance(config, dict):
            raise ConfigError(f"it is a {type(config).__name__} and no mapping of sections")
        check_names(config)
        dotted = next((key for key in _keys(config) if "." in key), None)
        if dotted is not None:
            raise ConfigError(f"no key of a config has a dot in it, {short(dotted)} has")
        if not isinstance(config.get("task"), dict) or "name" not in config["task"]:
            raise ConfigError(f"it has no section 'task' {{'name': ...}}; it has: {', '.join(sorted(config)) or 'nothing'}")
    except ConfigError as error:
        raise ConfigError(f"the config in {where}: {error}") from None
    return config


def _keys(tree: Any) -> Iterator[str]:
    """All keys of a tree of mappings and lists, which is not deep."""
    if isinstance(tree, dict):
        yield from tree
    for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _keys(part)


def migrated(config: Any) -> Any:
    """A config as this version names its task; `config` itself where it names it so already.

    Release 0.1.0 had no tasks for the priors of unCLIP: they were a `Diffusion` whose shape is that
    of an embedding, and an `Autoregressive` whose first stage is a CLIP. Folders and pages of that
    release go on as they are.

    Args:
      config: JSON, from a checkpoint or a page; anything.
    """
    task = config.get("task") if isinstance(config, Mapping) else None
    if not isinstance(task, Mapping):
        return config
    shape = task.get("shape")
    first = task.get("first_stage")
    of_embeddings = isinstance(shape, (list, tuple)) and len(shape) == 1
    of_clip = isinstance(first, Mapping) and first.get("name") == EMBEDDER
    if task.get("name") == DIFFUSION and of_embeddings:
        return {**config, "task": {**task, "name": DIFFUSION_PRIOR}}
    if task.get("name") == AUTOREGRESSIVE and of_clip:
        rest = {key: value for key, value in task.items() if key not in OF_TOKENS}
        return {**config, "task": {**rest, "name": AUTOREGRESSIVE_PRIOR}}
    return config


def task_of(config: Any) -> Task:
    """Builds `config['task']`, giving it `config['model']` (built first) as its argument `model` where the config has one.

    Args:
      config: a whole run's config; read from a checkpoint it is input from elsewhere, of which `build` makes no more than parts
        of pages.

    Raises:
      ConfigError: no 'task', or anything that `build` refuses.
    """
    config = plain(config)
    if "task" not in config:
        raise ConfigError(f"the config has no 'task'; it has: {', '.join(sorted(config)) or 'nothing'}")
    if "model" in config:
        check(config["task"], model=None)                  # all names of both, before either is made
    parts = {"model": build(config["model"])} if "model" in config else {}
    return build(config["task"], **parts)


def create(task: Task, optimizer: optax.GradientTransformation | Compressed, emas: Mapping[str, Profile], key: Key, batch: Raw,
           initial: Mapping[str, Params] | None = None) -> TrainState:
    """The state before the first update, (1). Pure and jittable.

    Args:
      task: what to train. Its parameters are nested dicts of arrays, so that a checkpoint folder can be read without its code.
      optimizer: any optax transformation.
      emas: name -> profile; each average starts as an exact copy of the parameters.
      key: draws the parameters.
      batch: gives shapes only.
      initial: what to start from in place of drawn parameters: {'': all of them}, or those of some parts by their path,
        {'cond/tower': ...}.

    Raises:
      ConfigError: initial parameters that are not this task's; an average is called 'params', which `checkpoint.load` keeps for
        the parameters themselves.
      TypeError: the task's parameters are not nested dicts.
    """
    if "params" in emas:
        raise ConfigError("no average may be called 'params': that is the name of the parameters themselves")
    params = task.init(key, batch)
    for place, part in (initial or {}).items():
        params = _replaced(params, place, part)
    params = task.project(params)
    for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not path or not all(isinstance(part, jax.tree_util.DictKey) for part in path):
            raise TypeError(f"a task's parameters are nested dicts of arrays, found {jax.tree_util.keystr(path) or 'an array'}")
    ema = {name: jax.tree.map(jnp.copy, params) for name in emas}      # copies: the step donates every buffer once
    opt_state, memory = optimizer.init(params), dict(task.memory())
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=opt_state, ema=ema, memory=memory)


def _replaced(params: Params, place: str, part: Params, whole: bool = True) -> Params:
    """`params` with the subtree at the path `place` from `part`, which may hold more than that; all of them for ''.

    Channels added to a network's input, those of a kernel called stem, start at zero, so that a network is fine-tuned to see more
    than it did (2112.10741, sec. 4.2).

    Raises:
      ConfigError: there is no such path; something in `part` is missing, has another shape, or is not there where all is given.
    """
    if place:
        head, _, rest = place.partition("/")
        if not isinstance(params, Mapping) or head not in params:
            raise unknown("part of the parameters in config.init", head, params if isinstance(params, Mapping) else ())
        return {**params, head: _replaced(params[head], rest, part, False)}
    given = {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(part)}
    wrong = []

    def taken(path: tuple, leaf: Array) -> Array:
        name = _name(path)
        found = _widened(path, given[name], leaf) if name in given else None
        if found is not None and found.shape == leaf.shape:
            return found.astype(leaf.dtype)                # weights may be kept in fewer bits than they are trained in
        wrong.append((name, f"{name} is {'missing' if found is None else found.shape}, the config's is {leaf.shape}"))
        return leaf

    replaced = jax.tree_util.tree_map_with_path(taken, params)
    names = {_name(path) for path, _ in jax.tree.leaves_with_path(params)}
    extra = sorted(given.keys() - names) if whole else []
    wrong += [(name, f"it has no {name}") for name in extra]
    if wrong:
        (largest, _), = collections.Counter(name.partition("/")[0] for name in names).most_common(1)
        fits = whole and largest not in {name.partition("/")[0] for name, _ in wrong}
        hint = f"start from what fits alone (--config.init.{largest}=FOLDER:{largest})" if fits else "give the page its sizes"
        raise ConfigError(f"the initial weights do not fit the model: {wrong[0][1]}; {hint}")
    return replaced


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _widened(path: tuple, leaf: Array, want: Array) -> Array:
    """`leaf`, with zeros for the input channels that a stem's kernel [h, w, C, F] lacks."""
    added = want.shape[2] - leaf.shape[2] if path[-2:] == STEM and leaf.ndim == want.ndim == 4 else 0
    return jnp.pad(leaf, ((0, 0), (0, 0), (0, added), (0, 0))) if added > 0 else leaf
