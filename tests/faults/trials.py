"""Trials of what ends a command, or meets it, at a random moment. One line of a table at the end of each.

    python tests/faults/trials.py trainers --count 50      a second trainer in a workdir: refused, and the first never notices
    python tests/faults/trials.py interrupts --count 50    Ctrl-C in train, sample, evaluate, encode, import_weights
    python tests/faults/trials.py errors --count 20        exceptions in the training loop, in one process and in two

The runs are those of kills.py, and the programs are compiled once for all of them.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from kills import _alive, command, equal
from nursery import ROOT, Nursery

sys.path.insert(0, str(Path(__file__).parents[1]))
WITHIN = 10.0
"""Seconds in which an exception is to end the process."""
STEPS = 40


def run(nursery: Nursery, arguments: list[str], log: Path, code: int = 0) -> None:
    """A command that is left alone."""
    got = nursery.wait(nursery.start(arguments, log))
    assert got == code, f"{got}: {log.read_text()[-3000:]}"


def until(ready: Callable[[], bool], process: int) -> bool:
    """Waits; False where the process has ended before."""
    while not ready():
        if not _alive(process):
            return False
        time.sleep(0.005)
    return True


# Two trainers ---------------------------------------------------------------------------------------------------------------


def trainers(nursery: Nursery, out: Path, count: int, rng: random.Random) -> str:
    """Second trainers at random moments of the first one's life."""
    steps, log, refused, runs, slowest = 5 * STEPS, out / "log.txt", 0, 0, 0.0
    run(nursery, command(out / "straight", steps), log)
    while refused < count:
        workdir = out / f"run{runs}"
        first = nursery.start(command(workdir, steps), log)
        alive = until((workdir / ".writer.json").exists, first)
        while alive and refused < count:
            time.sleep(rng.random() * 2)
            alive, begun, second = _alive(first), time.time(), out / f"second{refused}.txt"
            code = nursery.wait(nursery.start(command(workdir, steps), second)) if alive else 0
            if alive and _alive(first):                                        # else it met the end of the first
                says = second.read_text()
                assert code == 2 and says.count("\n") == 1 and f"is being trained by process {first} on " in says, (code, says)
                refused, slowest = refused + 1, max(slowest, time.time() - begun)
        assert nursery.wait(first) == 0, log.read_text()[-3000:]
        assert equal(out / "straight", workdir, steps), f"{workdir} is another run"
        shutil.rmtree(workdir)
        runs += 1
    return f"{refused} second trainers refused, at most {slowest:.1f} s each; {runs} runs bit for bit equal to the one left alone"


# Ctrl-C ---------------------------------------------------------------------------------------------------------------------


MODES = ("train", "sample", "evaluate", "encode", "import_weights")


class Modes:
    """What is interrupted: for each mode its arguments in a folder, and what is to be of a folder, whole or not there."""

    def __init__(self, nursery: Nursery, out: Path):
        from golden_case import load as load_case
        from safetensors.numpy import save_file

        self.out, log = out, out / "log.txt"
        run(nursery, command(out / "base", 8), log)
        page = ["--config", str(ROOT / "configs" / "digits_vae.py:tiny"), "--config.evaluate.num=0"]
        run(nursery, [*page, "--workdir", str(out / "vae")], log)
        case = load_case(ROOT / "tests" / "goldens" / "dit" / "dit_psample_8_fixedlarge_clip.json")
        save_file({key: np.ascontiguousarray(value) for key, value in case.weights.items()}, out / "dit.safetensors")
        (out / "dit.json").write_text(json.dumps(case.config["model"]))

    def arguments(self, mode: str, folder: Path) -> list[str]:
        """The command."""
        if mode == "train":
            return command(folder, STEPS)
        if mode == "import_weights":
            return ["--mode", mode, "--system", "dit", "--source", str(self.out / "dit.safetensors"), "--official",
                    str(self.out / "dit.json"), "--workdir", str(folder)]
        if mode == "encode":
            return ["--mode", mode, "--workdir", str(self.out / "vae"), "--out", str(folder)]
        if mode == "sample":
            return ["--mode", mode, "--workdir", str(self.out / "base"), "--num", "64", "--batch", "8", "--steps", "20", "--out",
                    f"{folder}.npz"]
        if not folder.exists():
            shutil.copytree(self.out / "base", folder)
        return ["--mode", mode, "--workdir", str(folder), "--num", "60", "--steps", "4"]

    def whole(self, mode: str, folder: Path) -> Any:
        """What a reader takes for the result, None where it takes nothing; it raises on half of one."""
        from diffusion_jax.data.latents import Latents
        from diffusion_jax.train.checkpoint import available, load

        if mode == "train":
            return [load(folder, step=step)[2] for step in available(folder)][-1:] if folder.exists() else None
        if mode == "import_weights":
            return load(folder)[2] if folder.exists() and available(folder) else None
        if mode == "encode":
            if not (folder / "latents.json").exists():
                return None
            return [[record["moments"] for record in map(latents.__getitem__, range(len(latents)))]
                    for latents in (Latents(str(folder)), Latents(str(folder), "test"))]
        if mode == "sample":
            if not Path(f"{folder}.npz").exists():
                return None
            with np.load(f"{folder}.npz") as arrays:
                return {name: arrays[name] for name in ("arr_0",)}
        report = folder / "report.json"
        return {k: v for k, v in json.loads(report.read_text()).items() if isinstance(v, float)} if report.exists() else None


def interrupts(nursery: Nursery, out: Path, count: int, rng: random.Random, names: tuple[str, ...] = MODES) -> str:
    """Ctrl-C at random moments; then the result is whole or not there, and the same command makes it."""
    import jax

    modes, want, took, met, late = Modes(nursery, out), {}, {}, dict.fromkeys(names, 0), 0
    for mode in names:
        begun = time.time()
        run(nursery, modes.arguments(mode, out / f"{mode}-straight"), out / "log.txt")
        took[mode] = (time.time() - begun) / 2                                 # from now on nothing compiles
        want[mode] = modes.whole(mode, out / f"{mode}-straight")
        assert want[mode] is not None, mode
    while sum(met.values()) < count:
        mode = names[sum(met.values()) % len(names)]
        folder, log = out / "it", out / f"{mode}.txt"
        log.unlink(missing_ok=True)
        process = nursery.start(modes.arguments(mode, folder), log)
        time.sleep(0.05 + rng.random() * took[mode])
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGINT)
        code, says = nursery.wait(process), log.read_text()
        lines = says.count("topped by Ctrl-C")
        assert code in (0, 130) and "Traceback" not in says and lines == (code == 130), (mode, code, says)
        met[mode], late = met[mode] + (code == 130), late + (code == 0)
        left = modes.whole(mode, folder)
        if left is not None and mode != "train":
            jax.tree.map(np.testing.assert_array_equal, left, want[mode])
        if left is None or mode == "train":
            run(nursery, modes.arguments(mode, folder), log)
            jax.tree.map(np.testing.assert_array_equal, modes.whole(mode, folder), want[mode])
        shutil.rmtree(folder, ignore_errors=True)
        Path(f"{folder}.npz").unlink(missing_ok=True)
    table = ", ".join(f"{mode} {number}" for mode, number in met.items())
    return (f"{sum(met.values())} Ctrl-C ({table}; {late} more came after the end): one line and 130, nothing half-written taken "
            "for whole")


# Exceptions -----------------------------------------------------------------------------------------------------------------

EVERY = ("--config.sample.every=4", "--config.evaluate.every=4", "--config.evaluate.samples=20", "--config.evaluate.num=20")
KEPT = ("--config", str(ROOT / "configs" / "digits_edm2.py:tiny"), "--config.sample.every=1000", "--config.evaluate.num=0")
PLACES = {
    "sample grid": ("diffusion_jax.data.pictures:save_png", 2, True),
    "in-loop measure": ("diffusion_jax.evaluation.metrics:measured", 2, True),
    "snapshot": ("diffusion_jax.train.posthoc:Snapshots.offer", 9, True),
    "writer": ("diffusion_jax.train.log:Writer.scalars", 7, False),
    "data": ("diffusion_jax.data.loader:Batches.__getitem__", 9, False),
    "save": ("diffusion_jax.train.checkpoint:Checkpoints.save", 2, False),
    "final evaluation": ("diffusion_jax.evaluation.report:write", 1, True),
}


def errors(nursery: Nursery, out: Path, count: int, rng: random.Random) -> str:
    """An exception at each place in turn, every fourth time in one of two processes."""
    slowest, told = 0.0, 0
    for number in range(count):
        name = list(PLACES)[number % len(PLACES)]
        where, calls, alone = PLACES[name]
        two = number % 4 == 3 and not alone
        workdir, logs = out / f"run{number}", [out / f"{number}-{i}.txt" for i in range(2 if two else 1)]
        of_page = [line for line in command(workdir, 12) if "evaluate" not in line and "sample" not in line]
        arguments = [*of_page, *(EVERY if alone else ("--config.evaluate.num=0",))]
        if name == "snapshot":
            arguments = [*KEPT, "--config.steps=12", "--workdir", str(workdir)]
        broken, fault = rng.randrange(2) if two and name != "writer" else 0, f"{where},{calls + rng.randrange(2) * (not alone)}"
        cluster = _cluster() if two else {}
        processes = [nursery.start([*arguments, *(["--distributed"] if two else [])], log, **cluster,
                                   **({"JAX_PROCESS_ID": str(i)} if two else {}), **({"FAULT": fault} if i == broken else {}))
                     for i, log in enumerate(logs)]
        for i, process in enumerate(processes):
            code, says = nursery.wait(process), logs[i].read_text()
            ended = time.time()
            assert code == 1 or (name in ("writer", "save", "snapshot") and code == 2), (name, i, code, says[-3000:])
            assert "injected" in says, (name, i, says[-3000:])
            raised = re.search(r"RAISED (\S+)", logs[broken].read_text())
            assert raised, (name, says[-2000:])
            slowest = max(slowest, ended - float(raised[1]))
            assert ended - float(raised[1]) < WITHIN, (name, i, ended - float(raised[1]))
        told += two
        shutil.rmtree(workdir)
    return (f"{count} exceptions ({told} of them in one of two processes) ended every process within {slowest:.1f} s, with "
            "message and code")


def _cluster() -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}", "JAX_NUM_PROCESSES": "2"}


def main() -> None:
    """One trial."""
    trials = {"trainers": (trainers, 50), "interrupts": (interrupts, 50), "errors": (errors, 20)}
    parser = argparse.ArgumentParser()
    parser.add_argument("trial", choices=trials)
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/trials"))
    parser.add_argument("--modes", default=",".join(MODES), help="which are interrupted")
    options = parser.parse_args()
    # Where this runs in the background of a script, Ctrl-C is ignored, and would be by all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trial, count = trials[options.trial]
    out, begun = options.out.resolve() / options.trial, time.time()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with Nursery() as nursery:
        only = {"names": tuple(options.modes.split(","))} if options.trial == "interrupts" else {}
        line = trial(nursery, out, options.count or count, random.Random(options.seed), **only)
    print(f"| {options.trial} | {line} | {time.time() - begun:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
