"""Trains the stages of a lineage: what is missing, in order of needs, each in its own process.

    <workdir>/pages/dit.py          the page that a stage is trained by, with every value in it
    <workdir>/logs/dit.log          what its commands printed
    <workdir>/dit                   its run; dit_seed1 ... of the other seeds
    <workdir>/dit/stage.json        of which page and helpers its weights are, and their time
    <workdir>/vae/latents           of an autoencoder that another stage needs: data in its latents
    <workdir>/flops.json            operations of a step, counted once
    <workdir>/trained.json          what became of all

A process gives back all memory, and a stage that fails leaves the others alone: it is named, and
those that need it are not tried. The same command goes on where it was stopped, for a run resumes
bit for bit. What is done is skipped: by the digests of its page, of the weights of its helpers and
of its own.
"""
from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.build import ConfigError
from diffusion_jax.data.latents import ABOUT
from diffusion_jax.files import json_object, rows_that_read, whole
from diffusion_jax.lineage.budget import TRAINED_ON, Plan, counted, page_of, plans_of
from diffusion_jax.lineage.process import Bar, command
from diffusion_jax.lineage.stages import Lineage, Stage, Trained, in_order
from diffusion_jax.runs.folder import FIRST, holds_run
from diffusion_jax.runs.written import written
from diffusion_jax.train.checkpoint import available, digest_of
from diffusion_jax.train.state import plain

RECORD, FLOPS, TRAINED = "stage.json", "flops.json", "trained.json"
LATENTS = "latents"
"""The role of an autoencoder, and the folder in its run's of the data in its latents."""
SEED_APART = 1000
"""Between the seeds of two runs of a stage, so that none has that of another stage."""
DECODED = ("train", "test", "decode")
COUNTED = ("model", "task", "data", "batch")
"""Sections of a page on which the operations of a step depend."""
Command = Callable[[Sequence[str], Path, Callable[[float], None]], str]
"""(arguments, log, what gets the seconds so far) -> '' or the error, as `process.command`."""


class Job(NamedTuple):
    """A run of a stage.

    Attributes:
      plan: the stage, its page and length.
      seed: 0 and up.
      workdir: of the lineage.
    """

    plan: Plan
    seed: int
    workdir: str

    @property
    def key(self) -> str:
        """Names its files."""
        return key_of(self.plan.stage.key, self.seed)

    @property
    def folder(self) -> Path:
        """Of its run."""
        return Path(self.workdir, self.key)

    def of_need(self, role: str) -> Path:
        """The folder of the run of what it needs."""
        return Path(self.workdir, key_of(self.plan.stage.needs[role], self.seed))

    @property
    def page(self) -> dict[str, Any]:
        """Its page as it is trained, with its seed and the folders of what it needs."""
        config = copy.deepcopy(self.plan.config)
        config["seed"] += SEED_APART * self.seed
        for role in self.plan.stage.needs:
            if role in TRAINED_ON:
                config[FIRST] = str(self.of_need(role))
            elif role == LATENTS:
                latents = str(self.of_need(role) / LATENTS)
                config[FIRST] = f"{latents}/{FIRST}"
                for part in DECODED:
                    config["data"][part]["path"] = latents
        return config


def key_of(stage: str, seed: int) -> str:
    """The name of the folder of a stage's run: 'dit', 'dit_seed1'."""
    return stage if seed == 0 else f"{stage}_seed{seed}"


def train(
    lineage: Lineage,
    workdir: str,
    tell: Callable[[str], None] = print,
    run: Command | None = None,
) -> tuple[Trained, ...]:
    """Trains what is missing.

    Args:
      lineage: checked.
      workdir: its folder, which this process holds.
      tell: gets a line for each stage.
      run: runs a command; `process.command` by default.

    Returns:
      A row for each stage and seed, in the order of training; of the networks that measure one.

    Raises:
      ConfigError: a page that is not there, helpers that leave a system nothing.
    """
    plans = plans_of(lineage, flops_of(lineage, workdir))
    todo = list(runs_of(lineage))
    rows: dict[tuple[str, int], Trained] = {}
    with contextlib.closing(
        Bar([plans[stage.key].flops if stage.page else 0.0 for stage, _ in todo])
    ) as bar:
        for number, (stage, seed) in enumerate(todo):
            needed = [rows[key, seed] for key in stage.needs.values() if (key, seed) in rows]
            row = blank(plans, stage, seed, workdir, needed)
            if stage.page and not row.error:
                job = Job(plans[stage.key], seed, workdir)
                row = one(job, functools.partial(bar.at, number), run or command)
            bar.at(number, 1.0, before=True)
            rows[stage.key, seed] = row
            tell(line_of(row))
            write(workdir, list(rows.values()))
    return tuple(rows.values())


def runs_of(lineage: Lineage) -> Iterator[tuple[Stage, int]]:
    """(stage, seed) of all that is trained, in order; what measures is trained once."""
    independent = (lineage.measure, lineage.judge)
    for seed in range(lineage.seeds):
        for stage in in_order(lineage.stages):
            if seed == 0 or stage.key not in independent:
                yield stage, seed


def blank(
    plans: Mapping[str, Plan], stage: Stage, seed: int, workdir: str, needed: Sequence[Trained]
) -> Trained:
    """The row of a stage before it is trained; of one that samples the run of another, that one's.

    Args:
      plans: of all, by key.
      stage, seed, workdir: which.
      needed: the rows of what it needs, one of which may have failed.
    """
    plan = plans[stage.needs.get("run", stage.key)]
    failed = [row.stage.name for row in needed if row.error]
    error = f"it needs {failed[0]}, which failed" if failed else ""
    folder = folder_of(stage, seed, workdir)
    return Trained(stage, seed, folder, plan.steps, plan.flops, plan.pictures, 0.0, error)


def folder_of(stage: Stage, seed: int, workdir: str) -> str:
    """The folder of a stage's run; of one that samples the run of another, that one's."""
    return str(Path(workdir, key_of(stage.needs.get("run", stage.key), seed)))


def line_of(row: Trained) -> str:
    """A row as a line for the terminal."""
    name = key_of(row.stage.key, row.seed)
    if row.error:
        return f"{name}: failed: {row.error}"
    if not row.stage.page:
        return f"{name}: samples {row.folder}"
    return f"{name}: {row.steps} steps, {row.flops / 1e12:.3g} TFLOP, {row.seconds:.0f} s"


def write(workdir: str, rows: Sequence[Trained]) -> None:
    """Writes the rows to trained.json."""
    entries = [{**row._asdict(), "stage": row.stage._asdict()} for row in rows]
    with whole(Path(workdir, TRAINED)) as file:
        file.write_text(json.dumps(entries, indent=1))


def read(lineage: Lineage, workdir: str) -> tuple[Trained, ...]:
    """The rows of trained.json.

    Args:
      lineage: of which they are to be, all stages and seeds.
      workdir: its folder.

    Raises:
      ConfigError: they are not there, or of other stages.
    """
    file = Path(workdir, TRAINED)
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        entries = []
    todo = list(runs_of(lineage))
    stages = [json.loads(json.dumps([stage._asdict(), seed])) for stage, seed in todo]
    if [[entry["stage"], entry["seed"]] for entry in entries] != stages:
        raise ConfigError(f"{file} has not these stages: train them first, without --compare")
    # Not the folders that they had then: a lineage may be moved.
    return tuple(
        Trained(**{**entry, "stage": stage, "folder": folder_of(stage, seed, workdir)})
        for entry, (stage, seed) in zip(entries, todo, strict=True)
    )


# Operations ---------------------------------------------------------------------------------------


def flops_of(lineage: Lineage, workdir: str) -> dict[str, float]:
    """Operations of a step of each stage, by key; those counted before lie in the workdir."""
    file = Path(workdir, FLOPS)
    counted_before = _read(file)
    stages = [stage for stage in lineage.stages if stage.page]
    configs = {stage.key: page_of(stage) for stage in stages}
    counts = {}
    for stage in stages:
        pages = [configs[key] for key in (stage.key, *stage.needs.values()) if key in configs]
        name = digest([[page.get(section) for section in COUNTED] for page in pages])
        if name not in counted_before:
            counted_before[name] = counted([stage], configs)[stage.key]
            with whole(file) as unfinished:
                unfinished.write_text(json.dumps(counted_before))
        counts[stage.key] = counted_before[name]
    return counts


def digest(tree: Any) -> str:
    """What tells JSON from other JSON: 16 digits."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def _read(file: Path) -> dict[str, Any]:
    """A JSON object of ours; {} where it is not there or was torn."""
    try:
        return json_object(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


# One stage ----------------------------------------------------------------------------------------


def one(job: Job, at: Callable[..., None], run: Command) -> Trained:
    """Trains one stage to its end, unless that was done.

    Args:
      job: which; what it needs is trained.
      at: gets the share of it that is done, its name, and whether that was done before.
      run: runs a command.
    """
    plan = job.plan
    row = Trained(
        plan.stage, job.seed, str(job.folder), plan.steps, plan.flops, plan.pictures, 0.0, ""
    )
    record = _read(job.folder / RECORD)
    seconds = float(record.get("seconds", 0.0))
    start = time.monotonic()
    try:
        about = about_of(job)
        if is_done(job, record, about):
            return row._replace(seconds=seconds)
        at(_step(job.folder) / plan.steps, job.key, before=True)

        def beat(elapsed: float) -> None:
            """Notes the time so far, which a kill would lose."""
            _note(job, about | {"seconds": seconds + time.monotonic() - start})
            at(_step(job.folder) / plan.steps, job.key)

        error = _encoded(job, run) or run(
            ["--config", _paged(job), "--workdir", str(job.folder)], _log(job), beat
        )
        error = error or _unfinished(job)
        seconds += time.monotonic() - start
        weights = {} if error else {"weights": digest_of(job.folder)}
        _note(job, about | {"seconds": seconds} | weights)
    except ConfigError as refused:
        error = str(refused)
    at(1.0, job.key)
    return row._replace(seconds=seconds, error=error)


def is_done(job: Job, record: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    """Whether a stage has all its steps, of this page and these helpers, and its own weights.

    Raises:
      ConfigError: its run is of other helpers, which it would go on with without a word.
    """
    if not holds_run(job.folder):
        return False
    if record.get("needs", about["needs"]) != about["needs"]:
        names = ", ".join(job.plan.stage.needs.values())
        raise ConfigError(
            f"{job.folder} is of other weights of {names}: remove it, and it is trained anew"
        )
    steps = available(job.folder)[-1]
    same = record.get("page") == about["page"] and record.get("weights") == digest_of(job.folder)
    return same and steps == job.plan.steps


def about_of(job: Job) -> dict[str, Any]:
    """What tells a stage's weights from others, wherever the workdir is: its page, and the weights
    of what it is trained on."""
    config = plain(job.plan.config)
    config.pop(FIRST, None)
    config["seed"] += SEED_APART * job.seed
    trained_on = [role for role in job.plan.stage.needs if role in (*TRAINED_ON, LATENTS)]
    return {
        "page": digest(config),
        "needs": {role: digest_of(job.of_need(role)) for role in trained_on},
    }


def _paged(job: Job) -> str:
    """Writes the page of a stage; its file."""
    page = Path(job.workdir, "pages", f"{job.key}.py")
    with whole(page) as file:
        file.write_text(written(job.page, str(page)), encoding="utf-8")
    return str(page)


def _unfinished(job: Job) -> str:
    """The error of a run that ended before its last step; ''."""
    steps = available(job.folder)[-1] if holds_run(job.folder) else 0
    total = job.plan.steps
    return (
        "" if steps == total else f"it stopped at step {steps} of {total}: the same command goes on"
    )


def _note(job: Job, record: Mapping[str, Any]) -> None:
    """Writes what is known of a stage into its folder, once the run is there."""
    if job.folder.is_dir():
        with whole(job.folder / RECORD) as file:
            file.write_text(json.dumps(record))


def _step(folder: Path) -> int:
    """The last step that a run has logged."""
    try:
        rows = rows_that_read(folder / "metrics.jsonl")
    except OSError:
        return 0
    return int(rows[-1].get("step", 0)) if rows else 0


def _log(job: Job) -> Path:
    return Path(job.workdir, "logs", f"{job.key}.log")


def _encoded(job: Job, run: Command) -> str:
    """Makes the latents that a stage is trained in, where they are not there; the error, or ''."""
    if LATENTS not in job.plan.stage.needs:
        return ""
    coder = job.of_need(LATENTS)
    # latents.json is written last.
    if (coder / LATENTS / ABOUT).exists():
        return ""
    return run(
        ["--mode", "encode", "--workdir", str(coder), "--out", str(coder / LATENTS)],
        _log(job),
        lambda elapsed: None,
    )
