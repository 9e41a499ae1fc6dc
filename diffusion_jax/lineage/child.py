"""A command of this package that ends when the process that started it does, even by SIGKILL.

    python -m diffusion_jax.lineage.child --config digits --workdir runs/lineage/dit

Standard input is a pipe that the other process holds open and writes nothing to. Its end means that
nobody waits any more; the command is then told by SIGTERM, at which training saves and ends.
"""
from __future__ import annotations

import os
import runpy
import signal
import threading


def follow() -> None:
    """Ends this process well when standard input ends."""
    # Not by sys.stdin, whose lock a thread that reads would hold while the interpreter ends.
    if not os.read(0, 1):
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=follow, daemon=True).start()
    runpy.run_module("diffusion_jax.main", run_name="__main__", alter_sys=True)
