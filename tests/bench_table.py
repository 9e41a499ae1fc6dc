"""All benchmarks of this folder in one table, one process after the other, with the machine named.

    pip install torch diffusers pytorch-fid
    python tests/bench_table.py                     # or some of them: python tests/bench_table.py data train

Each row is what a benchmark printed; how it measures stands at its top. Nothing else should run on the machine.
"""
from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
BENCHES = {
    "train": ("bench_train.py", "--rounds", "5", "--steps", "3"),
    "forward": ("bench_forward.py",),
    "sd": ("bench_sd.py", "--rounds", "2"),
    "metrics": ("bench_metrics.py", "--rounds", "3"),
    "dalle": ("bench_dalle.py",),
    "data": ("bench_data.py",),
}


SAY = "import jax; print(jax.devices()[0].device_kind, jax.device_count(), jax.__version__)"


def machine() -> str:
    """The processor, its cores and the accelerators that JAX sees, in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    said = subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True).stdout.strip()
    return f"{found}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; JAX: {said}"


def main() -> None:
    """Prints the table; exit code 1 where a benchmark did not run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("benches", nargs="*", default=list(BENCHES), help=", ".join(BENCHES))
    failed = False
    print(f"| {machine()} | seconds | figure |\n|---|---|---|", flush=True)
    for name in parser.parse_args().benches:
        start = time.time()
        done = subprocess.run([sys.executable, str(HERE / BENCHES[name][0]), *BENCHES[name][1:]], capture_output=True, text=True)
        failed |= bool(done.returncode)
        said = (done.stderr if done.returncode else done.stdout).strip().splitlines() or ["nothing was printed"]
        lines = [f"failed: {said[-1]}"] if done.returncode else said
        for line in lines:
            print(f"| `{' '.join(BENCHES[name])}` | {time.time() - start:.0f} | {line} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
