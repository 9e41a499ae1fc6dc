"""A hundred random kills of a digits run, and whether it ends as the run that was left alone.

    python tests/faults/kills.py --kills 100 --out runs/kills

configs/digits.py:tiny at width 16, 40 steps: a checkpoint every 4 steps, so that many kills meet one being written. Each life of
a run gets SIGKILL at a time drawn evenly from the first moments after its start, or from the next eight steps, until the run is
at its end; then it is compared with the run that was left alone, and another one begins.
"""
from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
from nursery import ROOT, Nursery

PAGE = ("--config", str(ROOT / "configs" / "digits.py:tiny"), "--config.model.width=16", "--config.task.cond.width=16",
        "--config.sample.every=100000", "--config.evaluate.num=0", "--config.checkpoint.every=4", "--config.log_every=1")


def command(workdir: Path, steps: int) -> list[str]:
    """The run's arguments."""
    return [*PAGE, f"--config.steps={steps}", "--workdir", str(workdir)]


def last_step(workdir: Path) -> int:
    """The last step that was logged."""
    path = workdir / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def half_written(workdir: Path) -> bool:
    """Whether a checkpoint was being written when the run died."""
    folder = workdir / "checkpoints"
    return folder.exists() and any("tmp" in path.name for path in folder.iterdir())


def equal(one: Path, other: Path, step: int) -> bool:
    """Whether two runs have the same log and the same state, bit for bit."""
    import jax
    import orbax.checkpoint as ocp

    states = [ocp.StandardCheckpointer().restore(run / "checkpoints" / str(step) / "state") for run in (one, other)]
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), *states)
    return all(jax.tree.leaves(same)) and (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def life(nursery: Nursery, workdir: Path, steps: int, rng: random.Random) -> bool:
    """One start and its kill; whether the kill met a living process."""
    process = nursery.start(command(workdir, steps), workdir.parent / "log.txt")
    if rng.random() < 0.2:
        time.sleep(rng.random() * 6)
    else:
        before, target, patience = last_step(workdir), rng.randint(1, 8), time.time() + 120
        while last_step(workdir) < before + target and time.time() < patience and _alive(process):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.3)
    os.kill(process, signal.SIGKILL)
    return nursery.wait(process) == -signal.SIGKILL


def _alive(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"


def main() -> None:
    """The whole trial."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=40, help="of each run; as many runs as the kills need")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no other run is begun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/kills"))
    options = parser.parse_args()
    out, rng, steps = options.out.resolve(), random.Random(options.seed), options.steps
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    start, log, kills, torn, runs = time.time(), out / "log.txt", 0, 0, 0
    with Nursery() as nursery:
        assert nursery.wait(nursery.start(command(out / "straight", steps), log)) == 0, log.read_text()
        while kills < options.kills and time.time() - start < 60 * options.minutes:
            run = out / f"run{runs}"
            while kills < options.kills and last_step(run) < steps and life(nursery, run, steps, rng):
                kills, torn = kills + 1, torn + half_written(run)
            assert nursery.wait(nursery.start(command(run, steps), log)) == 0, log.read_text()
            assert equal(out / "straight", run, steps), f"{run} is another run"
            runs += 1
            print(f"{kills} kills, {torn} while a checkpoint was written; {runs} runs of {steps} steps, all equal bit for bit to "
                  f"the one left alone; {time.time() - start:.0f} s", flush=True)
            shutil.rmtree(run)


if __name__ == "__main__":
    main()
