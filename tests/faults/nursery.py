"""Starts training runs quickly: a process that has imported everything forks one child for each command line.

    python nursery.py        reads lines [arguments, environment, log file], answers with the child's process id
                             reads lines with a process id, answers with its exit code when it has ended

A fork is a process of its own from then on: JAX makes its backend in it, nothing is shared but what was imported.
"""
from __future__ import annotations

import functools
import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = ("jax", "grain", "orbax.checkpoint", "tensorboardX", "clu.parameter_overview", "diffusion_jax.main",
           "diffusion_jax.data.digits", "diffusion_jax.models.dit", "diffusion_jax.modes.train", "diffusion_jax.modes.sample",
           "diffusion_jax.modes.encode", "diffusion_jax.modes.import_weights", "diffusion_jax.models.vae", "sklearn.svm")


class Nursery:
    """The parent's side. A context manager."""

    def __enter__(self) -> Nursery:
        self._cache = tempfile.TemporaryDirectory()        # of compiled programs: warm from the second start on, nobody else's
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1",
                        "XDG_CACHE_HOME": self._cache.name}
        self._process = subprocess.Popen([sys.executable, "-W", "ignore", __file__], cwd=ROOT, env=environment, text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def start(self, arguments: list[str], log: Path, devices: int = 1, **environment: str) -> int:
        """The process id of `python -m diffusion_jax.main <arguments>`."""
        flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_multi_thread_eigen=false"
        return self._ask([arguments, {"XLA_FLAGS": flags} | environment, str(log)])

    def wait(self, process: int) -> int:
        """Its exit code; -9 where it was killed."""
        return self._ask(process)

    def _ask(self, question: object) -> int:
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __exit__(self, *exception: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._cache.cleanup()


def _run(arguments: list[str], environment: dict[str, str], log: str) -> None:
    """The child's part."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(environment)
    sys.argv = ["main", *arguments]
    from diffusion_jax import main

    if "FAULT" in os.environ:
        _break(*os.environ["FAULT"].split(","))
    main.run()


def _break(where: str, calls: str) -> None:
    """Lets 'module:name' or 'module:class.name' raise at its call number `calls`, and say when."""
    module, _, path = where.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    work, number = getattr(owner, name), itertools.count(1)

    def broken(*arguments: object, **options: object) -> object:
        if next(number) == int(calls):
            os.write(1, f"\nRAISED {time.time()}\n".encode())
            raise RuntimeError("injected")
        return work(*arguments, **options)

    setattr(owner, name, broken)


def _serve() -> None:
    for name in IMPORTS:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        question = json.loads(line)
        if isinstance(question, int):
            answer = os.waitstatus_to_exitcode(os.waitpid(question, 0)[1])
        else:
            answer = os.fork()
            if not answer:
                _run(*question)
                os._exit(0)
        answers.write(f"{answer}\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
