"""The peak memory of an import over the size of its weights: Stable Diffusion 3 medium, two billion weights of zeros in bfloat16.

    python tests/bench_import.py                        # or: --depth 6 --dtype bfloat16

The file has holes in place of zeros, so the disk holds the run alone: 8 GB, which are removed.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import sd3_zeros

COMMAND = ("-m", "diffusion_jax.main", "--mode", "import_weights", "--system", "sd3")


def peak(folder: Path, dtype: str, **size: int) -> tuple[int, int]:
    """(the import's peak memory, its weights), in bytes."""
    count = sd3_zeros.write(folder / "zeros.safetensors", **size)
    command = [sys.executable, *COMMAND, "--source", str(folder / "zeros.safetensors"), "--workdir", str(folder / "run"),
               *(("--dtype", dtype) if dtype else ())]
    process = subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("the import failed")
    return 1024 * usage.ru_maxrss, count * (2 if dtype == "bfloat16" else 4)


def main() -> None:
    """Prints both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--dtype", default="")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        most, weights = peak(Path(folder), args.dtype, depth=args.depth)
    print(f"peak {most / 1e9:.2f} GB, weights {weights / 1e9:.2f} GB: {most / weights:.3f} times")


if __name__ == "__main__":
    main()
