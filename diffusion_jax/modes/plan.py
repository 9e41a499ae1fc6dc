"""Mode `plan`: what a config's train step or sampler needs on a machine that is not there.

    python -m diffusion_jax.main --mode plan --config configs/imagenet256_dit_xl2.py --workdir runs/plan --topology v5e:16x16

For TPUs the exact program is compiled ahead of time for the topology, up to its machine code (cost/compiler.py), which needs
libtpu (pip install 'diffusion_jax[tpu]', best in an environment of its own) and no TPU. The time predicted for a step is a
roofline, not a measurement:

    step = max(work, hidden collectives) + other collectives                          (1)
    MFU  = model operations / (step * chips * peak)                                   (2)

where work is the sum over instructions of cost/hlo.py and collectives run at the links' published speed (cost/chips.py). Model
operations are those of a forward and backward pass that recomputes nothing, counted layer by layer in the jaxpr. GPUs have no
compiler here: for them modes/layouts.py estimates.
"""
from __future__ import annotations

import gzip
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffusion_jax.build import ConfigError, build, unknown
from diffusion_jax.cost import compiler, hlo
from diffusion_jax.cost.chips import Topology, collective_seconds, topology
from diffusion_jax.modes import config as page
from diffusion_jax.modes.layouts import ROOM, Estimate, Layout, Work, candidates, estimate, on_chip, size, work_of
from diffusion_jax.nn import partition
from diffusion_jax.pipelines.diffusion import draw
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.train import shard
from diffusion_jax.train.state import plain
from diffusion_jax.train.step import make_step

GIB = 2**30
PROGRAMS = ("train", "sample", "estimate")
OPTIONS = ("topology", "layout", "program", "per_chip", "machine_code")
TRIES = 3


def run(config: Any, workdir: str, options: Mapping[str, Any]) -> None:
    """Prints a plan and writes workdir/plan.json.

    Args:
      config: a whole run's config.
      workdir: where the plan goes.
      options: topology, one or several; layout 'data,fsdp,tensor[,step|use]', one or several, the best by default; per_chip,
        examples on each chip in place of the config's batch; program 'train', 'sample', or 'estimate' to compile nothing;
        machine_code, to compile to the end and print XLA's own estimate of the time.

    Raises:
      ConfigError: an unknown chip or option; no layout fits; no libtpu.
    """
    for key in options:
        if key not in OPTIONS:
            raise unknown("option of mode plan", key, OPTIONS)
    config = plain(config)
    page.check(config)
    places, program = [topology(name) for name in options.get("topology", ("v5e:4x4",))], options.get("program", "train")
    if program not in PROGRAMS:
        raise unknown("program", program, PROGRAMS)
    layouts = [_layout(text, places) for text in options.get("layout", ())]
    whole, reports, machine_code = work_of(config), [], options.get("machine_code", False)
    path = Path(workdir, "plan.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    for place in places:
        batch = options["per_chip"] * place.chips if "per_chip" in options else config["batch"]
        work, report = whole.of_batch(batch), {"topology": place.name, "chips": place.chips, "program": program, "batch": batch}
        say_work(work, place)
        if program == "sample":
            report |= sampler(work, place, machine_code)
        else:
            report |= train(work, place, layouts, program == "estimate", path.parent, machine_code)
        reports.append(report)
        path.write_text(json.dumps(reports, indent=1))
    print(f"written to {path}")


def _layout(text: str, places: Sequence[Topology]) -> Layout:
    *numbers, last = text.split(",")
    gather = last if last in ("step", "use") else "step"
    sides = numbers if last == gather else [*numbers, last]
    if len(sides) != 3 or not all(side.strip().isdecimal() and int(side) for side in sides):
        raise ConfigError(f"a layout is 'data,fsdp,tensor' or 'data,fsdp,tensor,use', three numbers from 1 on, not {text!r}")
    layout = Layout(*map(int, sides), gather)
    for place in places:
        if math.prod(layout[:3]) != place.chips:
            raise ConfigError(f"--layout {text} is of {math.prod(layout[:3])} chips, {place.name} has {place.chips}")
    return layout


def say_work(work: Work, place: Topology) -> None:
    """Prints the operations of a step, layer by layer."""
    chip, config = place.chip, work.config
    print(f"{place.name}: {place.chips} chips of {chip.memory / GIB:.2f} GiB, {chip.flops / 1e12:.0f} TFLOP/s bf16, "
          f"{chip.bandwidth / 1e9:.0f} GB/s; batch {config['batch']}, {_count(work.state.params) / 1e6:,.1f} M parameters")
    total = sum(work.model_flops.values())
    print(f"operations of a step: {total / 1e12:,.1f} TFLOP, {work.flops / 1e12:,.1f} with what is recomputed; by layer:")
    for layer, flops in work.model_flops.most_common(8):
        print(f"  {flops / total:6.1%}  {flops / 1e12:12,.2f} TFLOP  {layer}")


def train(work: Work, place: Topology, layouts: list[Layout], guess: bool, folder: Path, machine_code: bool) -> dict[str, Any]:
    """Compares layouts, compiles the best until one fits, and says which: what goes into the report. With `guess` only compares.

    The text of what was compiled goes into `folder`.
    """
    asked = [estimate(work, layout, place) for layout in layouts or candidates(work, place.chips)]
    if not asked:
        raise ConfigError(f"batch {work.config['batch']} divides over no layout of {place.chips} chips: change it")
    room = ROOM * place.chip.memory
    ranked = sorted(asked, key=lambda e: (e.memory > room, e.seconds if e.memory <= room else e.memory, e.traffic))
    print(f"{'data x fsdp x tensor':38s} {'GiB a chip':>10s} {'fits':>5s} {'work ms':>8s} {'links ms':>9s}   (estimates)")
    for e in ranked[:12]:
        print(f"{e.layout!s:38s} {e.memory / GIB:10.1f} {'yes' if e.memory <= room else 'no':>5s} {e.compute * 1e3:8.0f} "
              f"{e.traffic * 1e3:9.0f}")
    report = {"model_flops": sum(work.model_flops.values()), "flops": work.flops, "layers": dict(work.model_flops),
              "estimates": [_said(e) for e in ranked]}
    if guess or not place.chip.axes:
        return report | {"recommended": list(ranked[0].layout), "compiled": []}
    compiled = []
    for e in ranked if layouts else ranked[:TRIES]:
        compiled.append(found := compile_train(work, place, e, folder, machine_code))
        if found["fits"] and not layouts:
            break
    best = min((c for c in compiled if c["fits"]), key=lambda c: c["step_s"], default=None)
    print(f"recommended: data x fsdp x tensor = {Layout(*best['layout'])}" if best else "nothing that was compiled fits")
    return report | {"compiled": compiled, "recommended": best and best["layout"]}


def _said(e: Estimate) -> dict[str, Any]:
    return {"layout": list(e.layout), "memory": e.memory, "parts": dict(e.parts), "compute_s": e.compute, "traffic_s": e.traffic}


def compile_train(work: Work, place: Topology, guess: Estimate, folder: Path, machine_code: bool) -> dict[str, Any]:
    """Compiles the train step in a layout; prints and returns what it needs."""
    layout = guess.layout
    mesh = mesh_of(place, layout)
    print(f"compiling data x fsdp x tensor = {layout} ...", flush=True)
    keep = folder / f"{place.name}_{layout.data}_{layout.fsdp}_{layout.tensor}_{layout.gather}.hlo.gz".replace(":", "_")
    found = program_of(mesh, place, keep, machine_code, lower_train, work, place, layout)
    memory = {name: on_chip(getattr(work.state, part), mesh, part, work.rules)
              for name, part in (("parameters", "params"), ("optimiser", "opt_state"), ("averages", "ema"))}
    memory["batch"] = size(work.batch) / layout.data / layout.fsdp
    report = {"layout": list(layout), "estimate": guess.memory, **found, "memory": memory}
    if found["fits"]:
        left = found["peak"] - sum(memory.values())
        memory["activations"] = min(guess.parts["activations"], left)
        memory["temporaries"] = left - memory["activations"]
        report["mfu"] = sum(work.model_flops.values()) / (found["step_s"] * place.chips * place.chip.flops)
        ratio = found["flops"] * place.chips / work.flops
        print(f"  operations a chip: {found['flops'] / 1e12:.2f} TFLOP compiled, {ratio:.3f} of those counted in the jaxpr")
    say_compiled(report, place)
    return report


def lower_train(work: Work, place: Topology, layout: Layout) -> jax.stages.Lowered:
    """The train step in a layout, for the compiler."""
    config, mesh = work.config, mesh_of(place, layout)
    step = make_step(work.task, build(config["optim"]), {n: build(s) for n, s in config["ema"].items()}, mesh,
                     shard.shardings(mesh, work.state, work.rules), config["accumulate"], config["seed"],
                     config.get("loss_scale", 1.0), layout.gather, config.get("activations", ()))
    return step.lower(work.state, work.frozen, work.batch)


def sampler(work: Work, place: Topology, machine_code: bool) -> dict[str, Any]:
    """Compiles the sampler of a config, `batch` images over all chips and the weights on each; what goes into the report."""
    config = work.config
    if not isinstance(work.task, Diffusion) or not place.chip.axes:
        raise ConfigError("the samplers of diffusion tasks are planned, on TPUs")
    layout = Layout(place.chips, 1, 1)
    print(f"compiling the sampler, {config['batch']} images over {place.chips} chips ...", flush=True)
    found = program_of(mesh_of(place, layout), place, None, machine_code, lower_sampler, work, place, layout)
    report = {"layout": list(layout), "memory": {"parameters": size(work.state.params)}, **found}
    say_compiled(report, place)
    if found["fits"]:
        print(f"  {config['batch'] / found['step_s']:.1f} images/s, {page.recipe_of(config, {}).steps} steps each")
    return report


def lower_sampler(work: Work, place: Topology, layout: Layout) -> jax.stages.Lowered:
    """The sampler of a config, for the compiler."""
    mesh, recipe = mesh_of(place, layout), page.recipe_of(work.config, {})
    rows, whole = shard.batch_sharding(mesh), shard.replicated(mesh)
    raw = {name: _split(x, rows) for name, x in work.batch.items() if name in work.task.cond.keys}
    params = jax.tree.map(lambda x: _split(x, whole), work.state.params)
    key, scale = jax.eval_shape(lambda: jax.random.key(0)), _split(jax.ShapeDtypeStruct((), jnp.float32), whole)
    index = jax.ShapeDtypeStruct((work.config["batch"],), jnp.int32, sharding=rows)
    static = replace(recipe, guidance=1.0, classifier_scale=1.0)
    with partition.activations(mesh, ()):
        return draw.lower(work.task, static, params, raw, index, _split(key, whole), (scale, scale), recipe.guidance != 1)


def mesh_of(place: Topology, layout: Layout) -> Mesh:
    """The mesh over a topology's devices, which need not be there.

    Raises:
      ConfigError: libtpu is not installed, or does not know the topology.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")             # here, and where the program is compiled
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=place.name).devices
    except Exception as error:
        raise ConfigError(f"no compiler for {place.name} (pip install libtpu, JAX_PLATFORMS=cpu): {str(error)[:200]}") from None
    return shard.make_mesh(*layout[:3], devices=devices)


def program_of(mesh: Mesh, place: Topology, keep: Path | None, machine_code: bool, lower: Callable[..., jax.stages.Lowered],
               *args: Any) -> dict[str, Any]:
    """Compiles `lower(*args)` and reads the program: memory, operations, bytes, collectives and (1); its text goes to `keep`."""
    start, chip = time.time(), place.chip
    try:
        text, memory = compiler.compiled(lower, *args, machine_code=machine_code)
    except compiler.OutOfMemory as error:
        return {"fits": False, "said": str(error), "compile_s": time.time() - start}
    if keep:
        keep.write_bytes(gzip.compress(text.encode(), 3))
    cost = hlo.Program(text, chip.flops, chip.bandwidth, chip.clock).cost()
    where = [tuple(device.coords)[: chip.axes] for device in mesh.devices.flat]
    kinds: dict[str, Counter] = {}
    hidden = exposed = 0.0
    for c in cost.collectives:
        seconds = c.times * collective_seconds(place, c.kind, c.size, [where[i] for i in c.group])
        kinds.setdefault(c.kind, Counter()).update(number=c.times, bytes=c.times * c.size, seconds=seconds)
        hidden, exposed = (hidden + seconds, exposed) if c.hidden else (hidden, exposed + seconds)
    found = {"fits": memory <= ROOM * chip.memory, "said": f"{memory / GIB:.2f} before machine code", "peak": memory,
             "flops": cost.flops, "bytes": cost.bytes, "work_s": cost.seconds, "hidden_s": hidden, "exposed_s": exposed,
             "step_s": max(cost.seconds, hidden) + exposed, "collectives": {k: dict(v) for k, v in kinds.items()},
             "kernels": cost.kernels, "compile_s": time.time() - start}
    return found | ({"xla_s": max(cost.estimated, hidden) + exposed} if machine_code else {})


def say_compiled(report: Mapping[str, Any], place: Topology) -> None:
    """Prints what `compiled` found."""
    parts = ", ".join(f"{name} {value / GIB:.2f}" for name, value in report["memory"].items())
    if not report["fits"]:
        print(f"  does not fit into {place.chip.memory / GIB:.2f} GiB: {report['said']} ({parts})")
        return
    print(f"  memory a chip: {report['peak'] / GIB:.2f} of {place.chip.memory / GIB:.2f} GiB ({parts}; GiB); "
          f"compiled in {report['compile_s']:.0f} s")
    for kind, c in report["collectives"].items():
        print(f"  {kind}: {c['number']:,} times, {c['bytes'] / 1e6:,.0f} MB, {c['seconds'] * 1e3:.1f} ms")
    print(f"  {report['bytes'] / 1e9:.1f} GB of memory traffic; work {report['work_s'] * 1e3:.0f} ms, collectives "
          f"{report['hidden_s'] * 1e3:.0f} ms beside it and {report['exposed_s'] * 1e3:.0f} ms on their own")
    if report["kernels"]:
        print(f"  warning: {report['kernels']:,} calls of unknown Pallas kernels are not in the roofline: the step takes longer")
    for kind, key in (("a roofline, so no less", "step_s"), ("XLA's own estimate", "xla_s")):
        if key in report:
            mfu = f", MFU {report['mfu'] * report['step_s'] / report[key]:.1%}" if "mfu" in report else ""
            print(f"  predicted ({kind}): {report[key] * 1e3:.0f} ms{mfu}")


def _split(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _count(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))
