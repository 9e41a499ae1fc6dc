"""Mode `plan`: what a config's train step or sampler needs on a machine that is not there.

    python -m diffusion_jax.main --mode plan --config configs/imagenet256_dit_xl2.py \\
        --workdir runs/plan --topology v5e:16x16

Layouts of chips are compared by an estimate. The best are compiled, for TPUs all but for their
machine code, until one fits: that needs the compiler (pip install 'diffusion_jax[tpu]', or
'diffusion_jax[cuda]' for GPUs, best in an environment of its own) and no chip. The plan is printed,
and written to plan.json in the workdir.

    v5e:16x16, v5p-128 ...    TPUs, by their shape or their number
    h100:64 ...               GPUs; estimates alone where their compiler is not installed

Of a page of stages (--config lineage:flowers) each stage is planned, and a table says how long each
of them trains:

    --config lineage:folder=photos/ --config.budget.amount=1e18 --program estimate --topology h100:1
"""
from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffusion_jax.build import ConfigError, check_options, number, option, short
from diffusion_jax.cost import gpu
from diffusion_jax.cost.chips import GIB, Topology, topology
from diffusion_jax.cost.units import duration, scaled
from diffusion_jax.files import unused, whole, writable
from diffusion_jax.lineage import stages
from diffusion_jax.lineage.budget import first_of, plans_of
from diffusion_jax.modes.options import PAGE_HELP, Page
from diffusion_jax.parts import MOST
from diffusion_jax.planning.compile import Report, compile_sampler, compile_train, recipe_of
from diffusion_jax.planning.layouts import Estimate, Layout, Work, candidates, ranked, work_of
from diffusion_jax.runs import page
from diffusion_jax.train.state import plain

PROGRAMS = ("train", "sample", "estimate")
TRIES = 3
"""Layouts that are compiled, the best first, until one fits."""
SHOWN = 12
"""Rows of the table of layouts."""
LAYERS = 8
"""Rows of the table of layers."""


@dataclass(frozen=True)
class Options:
    """What to plan, for which chips."""

    config: Page | None = option(None, PAGE_HELP)
    topology: tuple[str, ...] = option(
        ("v5e:4x4",), "The chips: v5e:16x16, v5p-128, h100:64 ...; may be given again"
    )
    program: str = option(
        "train", "train, sample, or estimate to compile nothing", choices=PROGRAMS
    )
    layout: tuple[str, ...] = option(
        (),
        "data,fsdp,tensor and 'use' to gather by layers; may be given again, the best by default",
    )
    per_chip: int | None = option(
        None, "Examples on each chip, in place of the page's batch", least=1, most=MOST
    )
    machine_code: bool = option(
        False,
        "Compile for TPUs to the end, for XLA's own estimate of the time; for UNets that takes "
        "half an hour and more",
    )

    def __post_init__(self):
        check_options(self)
        if self.config is None:
            raise ConfigError("mode plan needs --config configs/<page>.py")
        if self.machine_code and self.program == "estimate":
            raise ConfigError(
                "--machine_code is of programs that are compiled, and --program estimate compiles "
                "none: leave one out"
            )


def run(options: Options, workdir: str) -> None:
    """Prints a plan and writes workdir/plan.json, or plan-2.json where there is one.

    Args:
      options: a whole run's page, the chips, and perhaps layouts.
      workdir: where the plan goes.

    Raises:
      ConfigError: an unknown chip; no layout fits; no libtpu.
    """
    parts = parts_of(plain(options.config))
    if options.program == "sample" and parts[0].name:
        raise ConfigError("a page of stages is planned for training: leave --program out")
    machines = [topology(name) for name in options.topology]
    gpus = [machine.name for machine in machines if not machine.chip.axes]
    if options.machine_code and gpus:
        raise ConfigError(f"--machine_code is of TPUs, {gpus[0]} are GPUs: leave it out")
    if options.per_chip is not None:
        most = max(machine.chips for machine in machines)
        batch_of_all = options.per_chip * most
        number(f"--per_chip on {most} chips, the batch,", batch_of_all, most=MOST, integer=True)
    layouts = [layout_of(text, machines) for text in options.layout]
    path = unused(Path(workdir, "plan.json"))
    writable(path)
    reports = []
    for part in parts:
        # Traced once: another batch on other chips changes its numbers, not its program.
        page_work = work_of(part.config, part.first)
        for machine in machines:
            batch = part.config["batch"]
            if options.per_chip is not None:
                batch = options.per_chip * machine.chips
            work = page_work.of_batch(batch)
            if part.name:
                print(f"\n{part.name}:")
            print_work(work, machine)
            if options.program == "sample":
                plan = plan_sampler(work, machine, options.machine_code)
            else:
                plan = plan_train(work, machine, layouts, options, path.parent)
            about = {"topology": machine.name, "chips": machine.chips, "program": options.program}
            if part.name:
                length = part.steps * part.config["batch"] / batch
                about |= {"stage": part.name, "training_s": length * step_seconds(plan)}
            reports.append({**about, "batch": batch, **plan})
            # After every machine: one program takes minutes to compile, and a later one may fail.
            with whole(path) as unfinished:
                unfinished.write_text(json.dumps(reports, indent=1))
    if parts[0].name:
        print_stages(reports)
    print(f"written to {path}")


class Part(NamedTuple):
    """A run that is planned.

    Attributes:
      name: the stage that it is; "" of a page that is a run's.
      config: its page.
      steps: of its training.
      first: the page of the first stage that another stage trains.
    """

    name: str
    config: dict[str, Any]
    steps: int
    first: Mapping[str, Any] | None = None


def parts_of(config: dict[str, Any]) -> list[Part]:
    """The run of a page, or every one that a page of stages trains.

    Raises:
      ConfigError: what is wrong in it.
    """
    if "stages" not in config:
        page.check(config)
        return [Part("", config, config["steps"])]
    plans = plans_of(stages.read(config))
    pages = {key: plan.config for key, plan in plans.items()}
    return [
        Part(key, plan.config, plan.steps, first_of(plan.stage, pages))
        for key, plan in plans.items()
    ]


def layout_of(text: str, machines: Sequence[Topology]) -> Layout:
    """The layout 'data,fsdp,tensor[,step|use]'.

    Raises:
      ConfigError: it is none, or one of another number of chips than these machines have.
    """
    # The word behind the numbers may be left out.
    *numbers, last = text.split(",")
    gather = last if last in ("step", "use") else "step"
    sides = numbers if last == gather else [*numbers, last]
    try:
        data, fsdp, tensor = (int(number("a side", one, 1, MOST, integer=True)) for one in sides)
    except ValueError:  # of `number`, or another number of sides
        form = "'data,fsdp,tensor' or 'data,fsdp,tensor,use', three numbers from 1 on"
        raise ConfigError(f"a layout is {form}, not {short(text)}") from None
    layout = Layout(data, fsdp, tensor, gather)
    chips = math.prod(layout.sides)
    for machine in machines:
        if chips != machine.chips:
            has = f"{machine.name} has {machine.chips}"
            raise ConfigError(f"--layout {text} is of {chips} chips, {has}")
    return layout


def plan_train(
    work: Work, machine: Topology, layouts: Sequence[Layout], options: Options, folder: Path
) -> Report:
    """Compares layouts, compiles the best until one fits, and says which.

    Args:
      work: the train step.
      machine: the chips.
      layouts: which to compile, all of them; empty for the best.
      options: whether to compile, and how far.
      folder: where the texts of programs go.

    Returns:
      What the report holds beside the machine.

    Raises:
      ConfigError: no layout divides the batch.
    """
    estimates = ranked(work, machine, layouts or candidates(work, machine.chips))
    if not estimates:
        no_layout = f"no layout of {machine.chips} chips"
        raise ConfigError(f"batch {work.config['batch']} divides over {no_layout}: change it")
    print_estimates(estimates, machine)
    report = {
        "model_flops": sum(work.model_flops.values()),
        "flops": work.flops,
        "layers": dict(work.model_flops),
        "estimates": [as_report(each) for each in estimates],
    }
    missing = not machine.chip.axes and not gpu.installed()
    if missing:
        print(f"nothing is compiled for {machine.name}: that needs {gpu.INSTALL}")
    if options.program == "estimate" or missing:
        return report | {"recommended": list(estimates[0].layout), "compiled": []}
    compiled = compiled_of(work, machine, estimates, options, folder)
    return report | {"compiled": compiled, "recommended": fastest(compiled)}


def compiled_of(
    work: Work, machine: Topology, estimates: Sequence[Estimate], options: Options, folder: Path
) -> list[Report]:
    """Compiles train steps: all of --layout, else the best estimates until one fits."""
    compiled = []
    for estimate in estimates if options.layout else estimates[:TRIES]:
        print(f"compiling data x fsdp x tensor = {estimate.layout} ...", flush=True)
        report = compile_train(work, machine, estimate, folder, options.machine_code)
        print_train(report, work, machine)
        compiled.append(report)
        # Estimates come the fastest first, so the first that fits is the one to take; those that
        # were named are all compared.
        if report["fits"] and not options.layout:
            break
    return compiled


def fastest(compiled: Sequence[Report]) -> list[int | str] | None:
    """The layout of the shortest step that fits; None where none does."""
    fitting = [report for report in compiled if report["fits"]]
    if not fitting:
        print("nothing that was compiled fits")
        return None
    layout = min(fitting, key=lambda report: report["step_s"])["layout"]
    print(f"recommended: data x fsdp x tensor = {Layout(*layout)}")
    return layout


def step_seconds(plan: Report) -> float:
    """Of a planned train step: of the best program that was compiled and fits, else the estimate."""
    compiled = [report["step_s"] for report in plan["compiled"] if report["fits"]]
    best = plan["estimates"][0]
    return min(compiled, default=max(best["compute_s"], best["traffic_s"]))


def print_stages(reports: Sequence[Report]) -> None:
    """Prints how long each stage of a lineage trains on each machine, of one seed, and all."""
    machines = list(dict.fromkeys(report["topology"] for report in reports))
    table: dict[str, dict[str, float]] = {}
    for report in reports:
        table.setdefault(report["stage"], {})[report["topology"]] = report["training_s"]
    table["in all"] = {name: sum(row[name] for row in table.values()) for name in machines}
    print(f"\n{'training, no less than':24s}" + "".join(f"{name:>14s}" for name in machines))
    for name, row in table.items():
        print(f"{name:24s}" + "".join(f"{duration(row[each]):>14s}" for each in machines))


def plan_sampler(work: Work, machine: Topology, machine_code: bool) -> Report:
    """Compiles the sampler; what the report holds beside the machine."""
    batch = work.config["batch"]
    print(f"compiling the sampler, {batch} images over {machine.chips} chips ...", flush=True)
    report = compile_sampler(work, machine, machine_code)
    print_program(report, machine)
    if report["fits"]:
        print(f"  {batch / report['step_s']:.1f} images/s, {recipe_of(work).steps} steps each")
    return report


def as_report(estimate: Estimate) -> Report:
    """An estimate as plan.json holds it."""
    return {
        "layout": list(estimate.layout),
        "memory": estimate.memory,
        "parts": dict(estimate.parts),
        "compute_s": estimate.compute,
        "traffic_s": estimate.traffic,
    }


def print_work(work: Work, machine: Topology) -> None:
    """Prints the operations of a step, layer by layer."""
    chip = machine.chip
    parameters = sum(leaf.size for leaf in jax.tree.leaves(work.state.params))
    print(
        f"{machine.name}: {machine.chips} chips of {chip.memory / GIB:.2f} GiB, "
        f"{chip.flops / 1e12:.0f} TFLOP/s bf16, {chip.bandwidth / 1e9:.0f} GB/s; "
        f"batch {work.config['batch']}, {parameters:,} parameters"
    )
    total = sum(work.model_flops.values())
    print(
        f"operations of a step: {scaled(total, 'FLOP')}, "
        f"{scaled(work.flops, 'FLOP')} with what is recomputed; by layer:"
    )
    for layer, flops in work.model_flops.most_common(LAYERS):
        print(f"  {flops / total:6.1%}  {scaled(flops, 'FLOP'):>13s}  {layer}")


def print_estimates(estimates: list[Estimate], machine: Topology) -> None:
    """Prints the best layouts."""
    print(
        f"{'data x fsdp x tensor':38s} {'GiB a chip':>10s} {'fits':>5s} {'work':>8s} "
        f"{'links':>8s}   (estimates)"
    )
    for estimate in estimates[:SHOWN]:
        fits = "yes" if estimate.fits(machine.chip) else "no"
        print(
            f"{estimate.layout!s:38s} {estimate.memory / GIB:10.3g} {fits:>5s} "
            f"{scaled(estimate.compute, 's'):>8s} {scaled(estimate.traffic, 's'):>8s}"
        )


def print_train(report: Report, work: Work, machine: Topology) -> None:
    """Prints a compiled train step, with its operations beside those that were counted."""
    # Far from 1 either the count or the compiler has missed something: then trust neither.
    if report["fits"]:
        ratio = report["flops"] * machine.chips / work.flops
        print(
            f"  operations a chip: {scaled(report['flops'], 'FLOP')} compiled, "
            f"{ratio:.3f} of those counted in the jaxpr"
        )
    print_program(report, machine)


def print_program(report: Report, machine: Topology) -> None:
    """Prints what a compiled program needs."""
    capacity = f"{machine.chip.memory / GIB:.2f} GiB"
    parts = ", ".join(f"{name} {value / GIB:.2f}" for name, value in report["memory"].items())
    if not report["fits"]:
        print(f"  does not fit into {capacity}: {report['note']} ({parts})")
        return
    print(
        f"  memory a chip: {report['peak'] / GIB:.2f} of {capacity} ({parts}; GiB); "
        f"compiled in {report['compile_s']:.0f} s"
    )
    for kind, total in report["collectives"].items():
        print(
            f"  {kind}: {total['number']:,} times, {scaled(total['bytes'], 'B')}, "
            f"{scaled(total['seconds'], 's')}"
        )
    print(
        f"  {scaled(report['bytes'], 'B')} of memory traffic; "
        f"work {scaled(report['work_s'], 's')}, "
        f"collectives {scaled(report['hidden_s'], 's')} beside it and "
        f"{scaled(report['exposed_s'], 's')} on their own"
    )
    if report["kernels"]:
        print(
            f"  warning: {report['kernels']:,} calls of unknown Pallas kernels "
            "are not in the roofline: the step takes longer"
        )
    print_seconds(report)


def print_seconds(report: Report) -> None:
    """Prints the predicted time of a step, and the share of the peak where that is known."""
    for source, key in (("a roofline, so no less", "step_s"), ("XLA's own estimate", "xla_s")):
        if key not in report:
            continue
        mfu = ""
        # Of a step by (1); another prediction of its time has the share in inverse proportion.
        if "mfu" in report:
            mfu = f", MFU {report['mfu'] * report['step_s'] / report[key]:.1%}"
        print(f"  predicted ({source}): {scaled(report[key], 's')}{mfu}")
