"""One train step for every task.

    key    = fold_in(key(seed), step)                                                            (1)
    g      = 1/A sum_a  d loss(params, batch_a, key_a) / d params                                (2)
    moved  = params + optimizer(g)
    ema    = beta ema + (1 - beta) moved                                                         (3)
    params = project(moved)                                                                      (4)

(1) makes a run a function of its seed: resumed equals uninterrupted. (2) runs the batch in A microbatches, with the keys
key_a = fold_in(key, a) (A = 1: key itself). Microbatch a takes rows a, a + A, a + 2A, ... so that each device keeps its own:
where N devices hold B/N consecutive rows each, [B] -> [B/A, A] splits no device's block, and neither does swapping the two.

(2) is the gradient of the whole batch where the loss is a mean over examples. A loss that looks at its whole batch at once, as
CLIP's does, is a function L of what the network puts out for each example (types.py:WholeBatch), and

    y_a = outputs(params, batch_a, key_a),   loss = L(params, y),   y = [y_1 ... y_A]                (5)
    g   = dL/dparams + sum_a (dy_a/dparams)^T dL/dy_a                                               (6)

is its gradient exactly, for one more forward pass (Gao et al. 2021, arXiv 2101.06983). A task that can be split in neither way
says so (types.py:Undivided) and is refused.

Weights that are stored split over `fsdp` are gathered before the loss and their gradient is split again. That is not left to
XLA: given weights split over fsdp and tensor at once, its partitioner (JAX 0.10.2) drops an all-reduce and returns wrong
gradients next to the right loss, see openxla/xla#40034 and tests/train/test_step.py. gather='step' gathers all weights at once,
gather='use' each one where a layer uses it (train/gather.py), for models that are to be whole on no device.

An optimiser that compresses (train/powersgd.py) is given the gradient of each shard of the data axis, before anything is averaged
over it: (2) runs inside a `shard_map`, shard d with the key fold_in(key, d) (one shard: key itself). A loss that looks at its
whole batch would see the shard's, and is refused.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.nn import partition
from diffusion_jax.train import ema as averages
from diffusion_jax.train.gather import at_use, split_like
from diffusion_jax.train.powersgd import AXIS, Compressed, PowerState
from diffusion_jax.train.shard import BATCH_AXES, batch_sharding, gathered, replicated
from diffusion_jax.types import (
    Array,
    Key,
    Memory,
    Metrics,
    Params,
    Raw,
    Task,
    TrainState,
    Undivided,
    WholeBatch,
)

GATHER = ("step", "use")
Step = Callable[[TrainState, Params, Raw], tuple[TrainState, dict[str, Array]]]


def make_step(task: Task, optimizer: optax.GradientTransformation | Compressed, emas: Mapping[str, averages.Profile], mesh: Mesh,
              state_shardings: Any, accumulate: int = 1, seed: int = 0, loss_scale: float = 1.0, gather: str = "step",
              activations: partition.Rules = (), frozen_shardings: Any = None) -> Step:
    """The jitted step (state, frozen, batch) -> (state, metrics); the state passed in is donated and gone afterwards.

    Inside it the mesh is the current one (`jax.sharding.get_abstract_mesh()`): a model may constrain activations by axis names.

    Args:
      task: what to train.
      optimizer: any optax transformation, or one that compresses.
      emas: name -> profile, the names of `state.ema`.
      mesh: from `shard.make_mesh`.
      state_shardings: from `shard.shardings`, for the whole state.
      accumulate: A of (2) or (5); the batch must be a multiple of A x (data x fsdp).
      seed: of (1).
      loss_scale: see `gradients`.
      gather: 'step' or 'use', see the top of this file.
      activations: rules of nn/partition.py.
      frozen_shardings: how the frozen parameters are stored: those that are split are gathered as the trained ones are. None
        leaves them as they come.

    Returns:
      The step. Its metrics are float32 scalars: the task's own, loss where it gives none, grad_norm (unclipped), update_norm,
      param_norm, and lr where the optimiser keeps its learning rate (lr/<part> where several do).

    Raises:
      ConfigError: accumulate < 1, or more than 1 for a task that cannot be split, an unknown `gather`, what PowerSGD does not go
        with; when called, a batch that does not divide.
    """
    if gather not in GATHER:
        raise unknown("gather", gather, GATHER)
    check_split(task, accumulate)
    if isinstance(optimizer, Compressed) and (gather != "step" or activations):
        raise ConfigError("powersgd takes the gradient of each shard by itself: leave out gather='use' and rules of activations")
    if isinstance(optimizer, Compressed) and mesh.shape[AXIS] > 1 and (isinstance(task, WholeBatch) or _undivided(task)):
        raise ConfigError(f"powersgd shows each shard its own part of the batch, and the loss of {task.noun} looks at all of it: "
                          "leave powersgd out, or set mesh.data=1")
    if isinstance(optimizer, Compressed) and mesh.shape[AXIS] > 1 and _counts(task):
        raise ConfigError("powersgd averages what shards remember, counts too: leave out importance sampling, or set mesh.data=1")

    def step(state: TrainState, frozen: Params, batch: Raw) -> tuple[TrainState, dict[str, Array]]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), partition.activations(mesh, activations):
            key = jax.random.fold_in(jax.random.key(seed), state.step)                              # (1)
            frozen = frozen if frozen_shardings is None else jax.tree.map(_whole, frozen, frozen_shardings)
            opt_state, given = state.opt_state, (task, state.params, frozen, batch, key, mesh, state_shardings.params)
            options = dict(accumulate=accumulate, memory=state.memory, loss_scale=loss_scale)
            if isinstance(optimizer, Compressed):
                loss, metrics, grads, memory, power = compressed_gradients(optimizer, opt_state["powersgd"], *given, **options)
                opt_state = {**opt_state, "powersgd": power}
            else:
                loss, metrics, grads, memory = gradients(*given, **options, gather=gather)
            updates, opt_state = optimizer.update(grads, opt_state, state.params)
            moved = optax.apply_updates(state.params, updates)
            number = state.step + 1
            ema = {name: averages.update(state.ema[name], moved, profile, number) for name, profile in emas.items()}    # (3)
            params = task.project(moved)                                                            # (4)
            metrics = {"loss": loss, **metrics, "grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates),
                       "param_norm": optax.tree.norm(params), **_rates(opt_state)}
            metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
            return TrainState(step=number, params=params, opt_state=opt_state, ema=ema, memory=memory), metrics

    return jax.jit(step, in_shardings=(state_shardings, None, batch_sharding(mesh)),
                   out_shardings=(state_shardings, replicated(mesh)), donate_argnums=0)


def _whole(x: Array, stored: Any) -> Array:
    """A frozen weight as it is used; of one that is not split nothing is asked."""
    if not isinstance(stored, NamedSharding) or gathered(stored).spec == stored.spec:
        return x
    return jax.lax.with_sharding_constraint(x, gathered(stored))


def check_split(task: Task, accumulate: int) -> None:
    """Refuses a number of microbatches that a task cannot be trained in.

    Raises:
      ConfigError: less than one, or more for a task that cannot be split.
    """
    if accumulate < 1:
        raise ConfigError(f"accumulate is a number of microbatches, at least 1: got {accumulate}")
    if accumulate > 1 and _undivided(task):
        raise ConfigError(f"accumulate {accumulate} splits the batch, but {_undivided(task)}: set accumulate=1, "
                          "and a smaller batch or more devices")


def gradients(task: Task, params: Params, frozen: Params, batch: Raw, key: Key, mesh: Mesh | None, shardings: Any,
              accumulate: int = 1, memory: Memory = FrozenDict(), loss_scale: float = 1.0,
              gather: str = "step") -> tuple[Array, Metrics, Params, Memory]:
    """Loss, metrics, gradient and next memory of a batch, (2) or (6), the gradient stored like the parameters (`shardings`).

    A network that computes in float16 loses small gradients, unless the loss is scaled up (`loss_scale`) while they are taken.
    What then overflows is left out of the update: NaN and both infinities become 0, as in EDM2's published training. At scale 1
    they stay, for the loop to stop at.

    Without a mesh nothing is said of where arrays live: inside a `shard_map`.

    Raises:
      ConfigError: the batch is no multiple of accumulate x (data x fsdp).
    """
    later, stored = gather == "use", mesh is None or gather == "use"
    whole = params if stored else jax.lax.with_sharding_constraint(params, jax.tree.map(gathered, shardings))

    def opened(params: Params) -> Params:
        return at_use(params, shardings) if later else params

    def laid_out(grads: Params) -> Params:
        return grads if mesh is None else jax.tree.map(split_like, grads, shardings)

    if accumulate == 1:
        loss, metrics, grads, memory = _part(task, whole, frozen, batch, key, memory, loss_scale, opened)
        return loss / loss_scale, metrics, _unscaled(laid_out(grads), loss_scale), memory
    micro = jax.tree.map(lambda x: split(x, accumulate, mesh), batch)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(accumulate))
    if isinstance(task, WholeBatch):
        loss, metrics, total, memory = _overall(task, whole, frozen, (micro, keys), memory, loss_scale, opened, laid_out, mesh)
        return loss / loss_scale, metrics, _unscaled(total, loss_scale), memory

    def add(carry: tuple[Params, Memory], item: tuple[Raw, Key]) -> tuple[tuple[Params, Memory], tuple[Array, Metrics]]:
        total, memory = carry
        loss, metrics, grads, memory = _part(task, whole, frozen, *item, memory, loss_scale, opened)
        return (jax.tree.map(jnp.add, total, laid_out(grads)), memory), (loss, metrics)

    zero = jax.tree.map(jnp.zeros_like, params)
    (total, memory), logged = jax.lax.scan(add, (zero, memory), (micro, keys))
    loss, metrics = jax.tree.map(lambda x: x.mean(0), logged)
    return loss / loss_scale, metrics, _unscaled(jax.tree.map(lambda x: x / accumulate, total), loss_scale), memory


def _part(task: Task, whole: Params, frozen: Params, batch: Raw, key: Key, memory: Memory, loss_scale: float,
          opened: Callable[[Params], Params]) -> tuple[Array, Metrics, Params, Memory]:
    """Loss and gradient of one microbatch, both times `loss_scale`, what is logged of it, and the next memory."""
    def scaled(params: Params) -> tuple[Array, Metrics]:
        loss, metrics = task.loss(opened(params), with_memory(frozen, memory), batch, key, True)
        return loss_scale * loss, metrics

    (loss, metrics), grads = jax.value_and_grad(scaled, has_aux=True)(whole)
    metrics = dict(metrics)
    memory = metrics.pop("memory", memory)
    return loss, metrics, grads, memory


def _overall(task: WholeBatch, whole: Params, frozen: Params, items: tuple[Raw, Key], memory: Memory, loss_scale: float,
             opened: Callable[[Params], Params], laid_out: Callable[[Params], Params],
             mesh: Mesh | None) -> tuple[Array, Metrics, Params, Memory]:
    """(5) and (6), loss and gradient times `loss_scale`; `items` are the microbatches and their keys."""
    known, (micro, keys) = with_memory(frozen, memory), items

    def outputs(params: Params, item: tuple[Raw, Key]) -> Params:
        return task.outputs(opened(params), known, *item, True)

    def scaled(params: Params, y: Params) -> tuple[Array, Metrics]:
        loss, metrics = task.overall(opened(params), known, y, True)
        return loss_scale * loss, metrics

    y = jax.tree.map(lambda x: joined(x, mesh), jax.lax.map(partial(outputs, whole), items))
    (loss, metrics), (direct, pulls) = jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True)(whole, y)

    def add(total: Params, item: tuple[tuple[Raw, Key], Params]) -> tuple[Params, None]:
        _, back = jax.vjp(lambda params: outputs(params, item[0]), whole)
        return jax.tree.map(jnp.add, total, laid_out(back(item[1])[0])), None

    pulls = jax.tree.map(lambda x: split(x, len(keys), mesh), pulls)
    total, _ = jax.lax.scan(add, laid_out(direct), ((micro, keys), pulls))
    metrics = dict(metrics)
    memory = metrics.pop("memory", memory)
    return loss, metrics, total, memory


def with_memory(frozen: Params, memory: Memory) -> Params:
    """What a loss sees beside its parameters."""
    return {**(frozen or {}), "memory": memory} if memory else frozen


def _unscaled(grads: Params, loss_scale: float) -> Params:
    """A gradient without the scale of its loss, and without what overflowed under it."""
    if loss_scale == 1:
        return grads
    return jax.tree.map(lambda g: jnp.nan_to_num(g, nan=0, posinf=0, neginf=0) / loss_scale, grads)


def compressed_gradients(
    optimizer: Compressed, power: PowerState, task: Task, params: Params, frozen: Params, batch: Raw, key: Key, mesh: Mesh,
    shardings: Any, accumulate: int, memory: Memory, loss_scale: float,
) -> tuple[Array, Metrics, Params, Memory, PowerState]:
    """`gradients`, averaged over the data axis in low rank, and the next state of that: see the top of this file.

    Metrics and memory are means over the shards. Over fsdp XLA averages as it does elsewhere.

    Raises:
      ConfigError: the batch is no multiple of accumulate x (data x fsdp).
    """
    shards = mesh.shape[AXIS]
    whole = jax.lax.with_sharding_constraint(params, jax.tree.map(gathered, shardings))
    for x in jax.tree.leaves(batch):
        _check_rows(x, accumulate, mesh)

    def local(params: Params, frozen: Params, batch: Raw, key: Key, shard: Array, memory: Memory, power: PowerState) -> tuple:
        key = jax.random.fold_in(key, shard[0]) if shards > 1 else key
        loss, metrics, grads, memory = gradients(task, params, frozen, batch, key, None, None, accumulate, memory, loss_scale)
        grads, power = optimizer.average(grads, power)
        loss, metrics, memory = jax.tree.map(
            lambda x: jax.lax.pmean(x, AXIS).astype(jnp.result_type(x)), (loss, metrics, memory))
        return loss, metrics, grads, memory, power

    data, none = PartitionSpec(AXIS), PartitionSpec()
    state = PowerState(jax.tree.map(lambda e: data if e.ndim > 1 else none, power.error), none)
    loss, metrics, grads, memory, power = jax.shard_map(
        local, mesh=mesh, axis_names={AXIS}, in_specs=(none, none, data, none, data, none, state),
        out_specs=(none, none, none, none, state), check_vma=False,
    )(whole, frozen, batch, key, jnp.arange(shards), memory, power)
    return loss, metrics, jax.lax.with_sharding_constraint(grads, shardings), memory, power


def split(x: Array, accumulate: int, mesh: Mesh | None) -> Array:
    """[B, ...] -> [A, B/A, ...], each device keeping its own rows (see the top of this file)."""
    if mesh is not None:
        _check_rows(x, accumulate, mesh)
    x = x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)
    return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(None, BATCH_AXES)))


def joined(x: Array, mesh: Mesh | None) -> Array:
    """[A, B/A, ...] -> [B, ...], the inverse of `split`."""
    x = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(BATCH_AXES)))


def _check_rows(x: Array, accumulate: int, mesh: Mesh) -> None:
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if x.shape[0] % (accumulate * devices):
        raise ConfigError(f"batch size {x.shape[0]} must be a multiple of accumulate x devices = {accumulate} x {devices}")


def _undivided(task: Task) -> str:
    """Why a task's batch cannot be split; '' where it can."""
    return task.undivided if isinstance(task, Undivided) else ""


def _counts(task: Task) -> bool:
    """Whether a task's memory holds integers."""
    return any(jnp.issubdtype(x.dtype, jnp.integer) for x in jax.tree.leaves(jax.eval_shape(task.memory)))


def _rates(opt_state: Any) -> dict[str, Array]:
    """The learning rates that an optimiser keeps, named after their part of the parameters where there are several."""
    found: list[tuple[Any, Array]] = optax.tree.get_all_with_path(opt_state, "learning_rate")
    if len(found) == 1:
        return {"lr": found[0][1]}
    parts = [[str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)] for path, _ in found]
    return {"/".join(("lr", *part)): value for part, (_, value) in zip(parts, found, strict=True)}
