"""The launchers: what they would run, word for word (dry_run.txt), that shellcheck is content, and two processes for real."""
import os
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
SCRIPTS = sorted(path.name for path in (ROOT / "launch").glob("*.sh"))
SETTINGS = dict(
    NAME="dit", ZONE="us-central2-b", TYPE="v4-32", PROJECT="pods", SOURCE=".", CLUSTER="pod", IMAGE="gcr.io/pods/dit")
CASES = [
    "SPOT=1 tpu_vm.sh create", "tpu_vm.sh install", "tpu_vm.sh train --config 'my page.py' --workdir gs://b/x",
    "tpu_vm.sh delete", "tpu_vm.sh keep --config c.py --workdir gs://b/x",
    "queued.sh request", "SLICES=2 queued.sh request", "queued.sh state",
    "queued.sh install", "queued.sh train --config c.py --workdir gs://b/x", "queued.sh delete",
    "SLICES=4 xpk.sh train --config c.py --workdir gs://b/x", "xpk.sh list", "xpk.sh delete",
    "NODES=4 GPUS=8 PARTITION=long slurm.sh --config c.py --workdir /runs/x", "PROCESSES=2 DEVICES=4 local.sh --config c.py",
]


def launched(line, *flags, **settings):
    words = shlex.split(line)
    own = dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("-"))
    script, *rest = words[len(own):]
    environment = {"PATH": os.environ["PATH"], **settings, **own}
    command = ["bash", str(ROOT / "launch" / script), *flags, *rest]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def test_every_command_is_printed_as_it_would_be_run():
    said = []
    for case in CASES:
        done = launched(case, "--dry-run", **SETTINGS)
        assert done.returncode == 0, done.stderr
        said.append(f"# {case}\n{done.stdout}")
    assert "\n".join(said) == (HERE / "dry_run.txt").read_text()


@pytest.mark.parametrize(("case", "says"), [
    ("tpu_vm.sh create", "error: set NAME"), ("tpu_vm.sh tarin", "usage: "), ("slurm.sh", "usage: "), ("local.sh", "usage: "),
])
def test_what_is_missing_or_misspelt_is_said(case, says):
    done = launched(case, **({} if "NAME" in says else SETTINGS))
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_is_content(script):
    done = subprocess.run(["shellcheck", "-x", f"launch/{script}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_two_processes_on_this_machine_train_together(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    page = f"--config configs/digits.py:tiny --workdir {tmp_path} --config.evaluate.num=0"
    home = {name: os.environ[name] for name in ("HOME",) if name in os.environ}
    done = launched(f"PROCESSES=2 DEVICES=2 PORT={port} local.sh {page}", **home)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
