"""The train step or the sampler of a page, compiled for chips that are not there, and what it needs.

The program is compiled ahead of time for a topology, which needs a compiler and no chip: libtpu for
TPUs (cost/compiler.py), JAX's CUDA plugin for GPUs (cost/gpu.py). The time predicted for a step is a
roofline, not a measurement:

    step = max(work, hidden collectives) + other collectives                          (1)
    MFU  = model operations / (step * chips * peak)                                   (2)

where work is the sum over instructions of cost/hlo.py and collectives run at the links' published
speed (cost/chips.py). Model operations are those of a forward and backward pass that recomputes
nothing, counted layer by layer in the jaxpr.
"""
from __future__ import annotations

import gzip
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding

from diffusion_jax.build import ConfigError, build
from diffusion_jax.cost import compiler, gpu, hlo
from diffusion_jax.cost.chips import GIB, Topology, collective_seconds
from diffusion_jax.nn import partition
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.sampling import draw
from diffusion_jax.planning.layouts import ROOM, Estimate, Layout, Work, size, stored
from diffusion_jax.runs import page
from diffusion_jax.runs.folder import Model
from diffusion_jax.tasks import kinds
from diffusion_jax.train import shard
from diffusion_jax.train.step import make_step

Report = dict[str, Any]
"""What plan.json holds of a program; numbers are bytes, operations and seconds of one chip."""


def compile_train(
    work: Work, machine: Topology, guess: Estimate, folder: Path, machine_code: bool
) -> Report:
    """Compiles the train step in a layout.

    Args:
      work: the step.
      machine: the chips.
      guess: the layout's estimate, by whose activations temporaries are told from what is kept.
      folder: where the program's text goes.
      machine_code: compile to the end, for XLA's own estimate of the time.

    Returns:
      'layout', 'estimate', what `program_of` finds, 'memory' by parts and, where it fits, 'mfu'.
    """
    layout = guess.layout
    mesh = mesh_of(machine, layout)
    name = "_".join(map(str, (machine.name.replace(":", "_"), *layout)))
    text = folder / f"{name}.hlo.gz"
    program = program_of(mesh, machine, text, machine_code, lower_train, work, machine, layout)
    memory = {**stored(work, mesh), "batch": size(work.batch) / layout.data / layout.fsdp}
    report = {"layout": list(layout), "estimate": guess.memory, **program, "memory": memory}
    # The compiler gives one number for all that is not stored. What the backward pass keeps is
    # known from the estimate; the rest, gathered weights among it, are its temporaries.
    if program["fits"]:
        rest = program["peak"] - sum(memory.values())
        memory["activations"] = min(guess.parts["activations"], rest)
        memory["temporaries"] = rest - memory["activations"]
        peak = machine.chips * machine.chip.flops
        report["mfu"] = sum(work.model_flops.values()) / (program["step_s"] * peak)
    return report


def lower_train(work: Work, machine: Topology, layout: Layout) -> jax.stages.Lowered:
    """The train step in a layout, for the compiler."""
    config = work.config
    mesh = mesh_of(machine, layout)
    step = make_step(
        work.task,
        build(config["optim"]),
        {name: build(spec) for name, spec in config["ema"].items()},
        mesh,
        shard.shardings(mesh, work.state, work.rules),
        config["accumulate"],
        config["seed"],
        config.get("loss_scale", 1.0),
        layout.gather,
        config.get("activations", ()),
    )
    return step.lower(work.state, work.frozen, work.batch)


def compile_sampler(work: Work, machine: Topology, machine_code: bool) -> Report:
    """Compiles the sampler of a page: `batch` images over all chips, the weights on each.

    Returns:
      'layout', 'memory' and what `program_of` finds.

    Raises:
      ConfigError: no diffusion model, or no compiler for these chips.
    """
    if not isinstance(work.task, kinds.Denoising):
        raise ConfigError("the samplers of diffusion tasks are planned")
    layout = Layout(machine.chips, 1, 1)
    mesh = mesh_of(machine, layout)
    program = program_of(mesh, machine, None, machine_code, lower_sampler, work, machine, layout)
    return {"layout": list(layout), "memory": {"parameters": size(work.state.params)}, **program}


def lower_sampler(work: Work, machine: Topology, layout: Layout) -> jax.stages.Lowered:
    """The sampler of a page, for the compiler."""
    mesh = mesh_of(machine, layout)
    rows = shard.batch_sharding(mesh)
    whole = shard.replicated(mesh)
    task = cast(kinds.Denoising, work.task)  # as compile_sampler has checked
    recipe, strengths = recipe_of(work).split()
    # The loop over steps in latents, with no first stage: decoding is one call after all steps.
    model = Model(_placed(work.state.params, whole), None, task)
    raw = {name: _placed(x, rows) for name, x in work.batch.items() if name in task.cond.keys}
    index = jax.ShapeDtypeStruct((work.config["batch"],), jnp.int32, sharding=rows)
    key = _placed(jax.eval_shape(lambda: jax.random.key(0)), whole)
    with partition.activations(mesh, ()):
        return draw.lower(model, recipe, _placed(strengths, whole), raw, index, key)


def recipe_of(work: Work) -> Recipe:
    """How the page samples."""
    return Recipe.of(page.recipe_fields(work.config))


def mesh_of(machine: Topology, layout: Layout) -> Mesh:
    """The mesh over a topology's devices, which need not be there.

    Raises:
      ConfigError: the compiler is not installed, or does not know the topology.
    """
    devices = tpus(machine) if machine.chip.axes else gpu.devices(machine)
    return shard.make_mesh(*layout.sides, devices=devices)


def tpus(machine: Topology) -> Sequence[Any]:
    """The TPUs of a topology.

    Raises:
      ConfigError: libtpu is not installed, or does not know the topology.
    """
    # Else libtpu asks the machine which TPUs it has, for minutes where it has none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Here, and in the process in which the program is compiled.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=machine.name).devices
    except Exception as error:  # of several kinds, by the version of libtpu
        install = "pip install libtpu, JAX_PLATFORMS=cpu"
        reason = str(error)[:200]
        raise ConfigError(f"no compiler for {machine.name} ({install}): {reason}") from None


def program_of(
    mesh: Mesh,
    machine: Topology,
    text_file: Path | None,
    machine_code: bool,
    lower: Callable[..., jax.stages.Lowered],
    *args: Any,
) -> Report:
    """Compiles `lower(*args)` and reads the program.

    Args:
      mesh: over the machine's devices.
      machine: the chips.
      text_file: where the text of the program goes, if anywhere.
      machine_code: compile to the end.
      lower: a function of a module, which is called in a process of its own.
      *args: of `lower`; they are pickled.

    Returns:
      'fits', 'note', 'compile_s'; where it compiles, memory, operations, bytes, collectives, (1).
    """
    start = time.time()
    try:
        if machine.chip.axes:
            text, memory = compiler.compiled(lower, *args, machine_code=machine_code)
        else:
            text, memory = gpu.compiled(lower, *args)
    # What does not fit is an answer, with the compiler's reason; all other errors are errors.
    except compiler.OutOfMemory as error:
        return {"fits": False, "note": str(error), "compile_s": time.time() - start}
    if text_file:
        text_file.write_bytes(gzip.compress(text.encode(), 3))
    report = needs_of(text, memory, mesh, machine, machine_code)
    return report | {"compile_s": time.time() - start}


def needs_of(
    text: str, memory: float, mesh: Mesh, machine: Topology, machine_code: bool
) -> Report:
    """What a compiled program needs, read from its text.

    Args:
      text: of the program for one chip, after the compiler's passes.
      memory: bytes that the compiler says it takes.
      mesh, machine, machine_code: as for `program_of`.
    """
    chip = machine.chip
    cost = hlo.Program(text, chip.flops, chip.bandwidth, chip.clock).cost()
    links = links_of(cost.collectives, mesh, machine)
    report = {
        "fits": memory <= ROOM * chip.memory,
        "note": f"{memory / GIB:.2f} GiB",
        "peak": memory,
        "flops": cost.flops,
        "bytes": cost.bytes,
        "work_s": cost.seconds,
        "hidden_s": links.hidden,
        "exposed_s": links.exposed,
        "step_s": links.step(cost.seconds),
        "collectives": links.totals,
        "kernels": cost.kernels,
    }
    # Cycles stand in the text only where the compiler has gone as far as machine code.
    if machine_code:
        report["xla_s"] = links.step(cost.estimated)
    return report


class Links(NamedTuple):
    """What the links do in a step.

    Attributes:
      hidden: seconds of the collectives that run beside the work.
      exposed: seconds of the others.
      totals: number, bytes and seconds of each kind of collective.
    """

    hidden: float
    exposed: float
    totals: dict[str, dict[str, float]]

    def step(self, work: float) -> float:
        """(1), of the seconds of work."""
        return max(work, self.hidden) + self.exposed


def links_of(collectives: Iterable[hlo.Collective], mesh: Mesh, machine: Topology) -> Links:
    """The time of a program's collectives, at the links' published speed."""
    axes = machine.chip.axes
    coordinates = [
        tuple(device.coords)[:axes] if axes else (device.id,) for device in mesh.devices.flat
    ]
    totals: dict[str, dict[str, float]] = {}
    hidden = 0.0
    exposed = 0.0
    for collective in collectives:
        group = [coordinates[number] for number in collective.group]
        once = collective_seconds(machine, collective.kind, collective.size, group)
        seconds = collective.times * once
        if collective.hidden:
            hidden += seconds
        else:
            exposed += seconds
        total = totals.setdefault(collective.kind, {"number": 0, "bytes": 0, "seconds": 0})
        total["number"] += collective.times
        total["bytes"] += collective.times * collective.size
        total["seconds"] += seconds
    return Links(hidden, exposed, totals)


def _placed(tree: Any, sharding: Sharding) -> Any:
    """Shapes of a pytree's arrays, on devices."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
