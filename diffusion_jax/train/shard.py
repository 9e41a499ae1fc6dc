"""Where every array of a run lives: a mesh of devices and ordered rules over the paths of the train state.

The mesh has three axes. The batch is split over data x fsdp; `fsdp` also splits the stored parameters, moments and averages, and
the step gathers the parameters before it uses them; `tensor` splits single matrix products. Any of the three may be 1.

A rule is (regex, spec) and the first whose regex is found in a path decides. The optimiser's moments and the averages need no
rules of their own, because their paths end in the parameter's path:

    params/blocks/attn/qkv/kernel     opt_state/1/0/mu/blocks/attn/qkv/kernel     ema/main/blocks/attn/qkv/kernel

A spec is 'replicate', 'fsdp' (the largest dimension that fsdp divides is split), or one entry for each of the last dimensions:
(None, 'tensor') splits the last dimension of a kernel, whether or not `nn.scan` stacked a layer dimension in front of it.
"""
from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from diffusion_jax.build import ConfigError, unknown

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
Spec = str | Sequence[str | Sequence[str] | None]
Rules = Sequence[tuple[str, Spec]]
REPLICATE: Rules = ((".*", "replicate"),)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh ('data', 'fsdp', 'tensor').

    Args:
      data, fsdp, tensor: devices along each axis; -1 (one of them at most) takes what the others leave.
      devices: which of `jax.devices()`, all by default.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ConfigError(f"mesh sizes are positive, one of them at most -1: got data={data}, fsdp={fsdp}, tensor={tensor}")
    fixed = math.prod(size for size in sizes if size != -1)
    sizes = [max(len(devices) // fixed, 1) if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise ConfigError(f"mesh data={data}, fsdp={fsdp}, tensor={tensor} does not use exactly {len(devices)} devices: "
                          "the sizes must multiply to that number")
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        return _over_slices(sizes, slices, devices)
    # linen's logical constraints need Auto axes, and make_mesh would make them Explicit.
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def _over_slices(sizes: Sequence[int], slices: int, devices: Sequence[Any]) -> Mesh:
    """The mesh of several TPU slices: only `data` crosses the slow network between them."""
    if sizes[0] % slices:
        raise ConfigError(f"data={sizes[0]} does not divide among {slices} slices: fsdp and tensor must fit into one of them")
    inner = (sizes[0] // slices, *sizes[1:])
    found = mesh_utils.create_hybrid_device_mesh(inner, (slices, 1, 1), devices, allow_split_physical_axes=True)
    return Mesh(found, AXES, axis_types=(AxisType.Auto,) * 3)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension over data x fsdp, for batches of any rank >= 1."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shardings(mesh: Mesh, shapes: Any, rules: Rules = REPLICATE) -> Any:
    """One NamedSharding for every array of a state.

    Args:
      mesh: from `make_mesh`.
      shapes: a pytree of arrays or ShapeDtypeStructs, the whole TrainState.
      rules: see the top of this file. A named axis that does not divide its dimension leaves that dimension whole.

    Raises:
      ConfigError: a path that no rule decides; a rule that decides no path (a last '.*' may); an unknown spec or axis.

    Example:
      shardings(mesh, jax.eval_shape(...), ((r'attn/qkv/kernel$', (None, 'tensor')), ('.*', 'fsdp')))
    """
    rules = tuple((str(pattern), spec) for pattern, spec in rules)
    paths, tree = jax.tree_util.tree_flatten_with_path(shapes)
    used, result = set(), []
    for path, leaf in paths:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        index, sharding = _placed(mesh, name, leaf.shape, rules)
        used.add(index)
        result.append(sharding)
    for index, (pattern, _) in enumerate(rules):
        if index not in used and not (pattern == ".*" and index == len(rules) - 1):
            raise ConfigError(f"sharding rule {pattern!r} decides nothing: no path matches it, or earlier rules take them all")
    return jax.tree_util.tree_unflatten(tree, result)


def placed(mesh: Mesh | AbstractMesh, name: str, shape: tuple[int, ...], rules: Rules) -> NamedSharding:
    """Where the array of one path goes; `ConfigError` where no rule decides."""
    return _placed(mesh, name, shape, rules)[1]


def _placed(mesh: Mesh | AbstractMesh, name: str, shape: tuple[int, ...], rules: Rules) -> tuple[int, NamedSharding]:
    """(number of the rule that decides, sharding)."""
    index = next((i for i, (pattern, _) in enumerate(rules) if _found(pattern, name)), None)
    if index is None:
        raise ConfigError(f"no sharding rule matches {name!r}: end the rules with ('.*', 'replicate')")
    return index, NamedSharding(mesh, PartitionSpec(*_axes(mesh, rules[index][1], shape)))


def _found(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise ConfigError(f"sharding rule {pattern!r} is no regular expression ({error}): '.*' matches every path") from None


def gathered(sharding: NamedSharding) -> NamedSharding:
    """How a stored weight is used: the same without `data` and `fsdp`, so that only `tensor` splits the products."""
    def keep(entry: str | tuple[str, ...] | None) -> str | None:
        return "tensor" if entry == "tensor" or (isinstance(entry, tuple) and "tensor" in entry) else None

    return NamedSharding(sharding.mesh, PartitionSpec(*map(keep, sharding.spec)))


def _axes(mesh: Mesh | AbstractMesh, spec: Spec, shape: tuple[int, ...]) -> list[str | tuple[str, ...] | None]:
    """One entry of a PartitionSpec for each dimension."""
    if isinstance(spec, str):
        if spec not in ("replicate", "fsdp"):
            raise unknown("sharding", spec, ("replicate", "fsdp"))
        size = mesh.shape["fsdp"]
        whole = [i for i, dim in enumerate(shape) if dim and dim % size == 0]
        split = max(whole, key=lambda i: (shape[i], i), default=None) if spec == "fsdp" and size > 1 else None
        return ["fsdp" if i == split else None for i in range(len(shape))]
    entries = [None] * (len(shape) - len(spec)) + list(spec)[max(len(spec) - len(shape), 0):]
    return [_entry(mesh, entry, dim) for entry, dim in zip(entries, shape, strict=True)]


def _entry(mesh: Mesh | AbstractMesh, entry: str | Sequence[str] | None, dim: int) -> str | tuple[str, ...] | None:
    """The entry, or None where its axes do not divide the dimension."""
    names = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
    for name in names:
        if name not in AXES:
            raise unknown("mesh axis", name, AXES)
    size = math.prod(mesh.shape[name] for name in names)
    if size == 1 or dim % size:
        return None
    return names[0] if len(names) == 1 else names


def shared(tree: Any, size: int, mesh: Mesh | None) -> Any:
    """Arrays of a traced program as the devices of a mesh share a batch of `size`: what has a row for each example is split, the
    rest is everywhere. Without a mesh, and on one device, as they are.

    Left to XLA, a program of some steps would get them in another way than the next, and compile once more, and than a program of
    all steps, and round in another order.
    """
    if mesh is None or mesh.size == 1:
        return tree

    def put(x: jax.Array) -> jax.Array:
        of_batch = x.ndim > 0 and len(x) == size
        return jax.lax.with_sharding_constraint(x, batch_sharding(mesh) if of_batch else replicated(mesh))

    return jax.tree.map(put, tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of every array on every device of the mesh; each process passes the same values.

    Arrays that span processes stay, and so do those that lie on this mesh already, in whatever way (`place`).
    """
    def put(x: Any) -> jax.Array:
        on_mesh = isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding) and x.sharding.mesh == mesh
        if on_mesh or (isinstance(x, jax.Array) and not x.is_fully_addressable):
            return x
        return _put(x, replicated(mesh))

    return jax.tree.map(put, tree)


def place(params: Any, mesh: Mesh, rules: Rules) -> Any:
    """Parameters on a mesh, each array where the rules put it in a train state; each process passes the same values."""
    def put(path: tuple, x: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return _put(x, placed(mesh, f"params/{name}", x.shape, rules))

    return jax.tree_util.tree_map_with_path(put, params)


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    """An array that each process has whole, laid out."""
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
