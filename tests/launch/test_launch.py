"""The launchers: what they would run, word for word (dry_run.txt), that shellcheck is content, and two processes for real."""
import functools
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
SCRIPTS = sorted(path.name for path in (ROOT / "launch").glob("*.sh"))
SETTINGS = dict(
    NAME="dit", ZONE="us-central2-b", TYPE="v4-32", PROJECT="pods", SOURCE=".", CLUSTER="pod", IMAGE="gcr.io/pods/dit")
CASES = [
    "SPOT=1 tpu_vm.sh create", "tpu_vm.sh install", "tpu_vm.sh train --config 'my page.py' --workdir /mnt/shared/x",
    "tpu_vm.sh delete", "tpu_vm.sh keep --config c.py --workdir /mnt/shared/x",
    "queued.sh request", "SLICES=2 queued.sh request", "queued.sh state",
    "queued.sh install", "queued.sh train --config c.py --workdir /mnt/shared/x", "queued.sh delete",
    "SLICES=4 xpk.sh train --config c.py --workdir /mnt/shared/x", "xpk.sh list", "xpk.sh delete",
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


def stubs(folder, **scripts):
    """Commands that append what they are to folder/log and then run a script."""
    (folder / "bin").mkdir()
    for name, script in scripts.items():
        path = folder / "bin" / name
        path.write_text(f'#!/usr/bin/env bash\ncd {folder}\necho "{name} $*" >> log\n{script}\n')
        path.chmod(0o755)
    return f"{folder / 'bin'}:{os.environ['PATH']}"


def test_a_slurm_job_out_of_time_saves_and_is_put_back(tmp_path):
    """srun kills its step when it is sent SIGTERM itself; the shell of the job is the one that Slurm tells."""
    sbatch = '''job=${@: -1}; SLURM_JOB_ID=7 sh -c "${job#--wrap=}" & job=$!
        until [ -f ready ]; do sleep 0.02; done; kill -TERM $job; wait $job'''
    srun = "trap 'echo killed >> log; exit 1' TERM; touch ready; until [ -f told ]; do sleep 0.02; done; echo saved >> log"
    path = stubs(tmp_path, sbatch=sbatch, srun=srun, scancel="touch told", scontrol="")
    launched("GPUS=2 slurm.sh --config c.py --workdir x", PATH=path)
    log = (tmp_path / "log").read_text()
    assert "--ntasks-per-node=2" in log
    assert log.splitlines()[-3:] == ["scancel --signal=TERM 7.0", "saved", "scontrol requeue 7"]


@pytest.mark.parametrize(("state", "says"), [("READY", ["sleep", "describe"]), ("PREEMPTED", [
    "sleep", "describe", "delete", "create", "sleep", "create", "ssh", "scp", "ssh", "ssh"])])
def test_a_slice_is_made_again_after_a_preemption_only(tmp_path, state, says):
    """The first training and the second creation fail."""
    gcloud = f"""case "$4 $*" in
        describe*) echo {state} ;;
        create*) [ "$(grep -c ' create ' log)" != 2 ] ;;
        ssh*main*) [ "$(grep -c ' ssh .*main' log)" != 1 ] ;;
    esac"""
    path = stubs(tmp_path, gcloud=gcloud, sleep="")
    done = launched("tpu_vm.sh keep --config c.py --workdir /mnt/shared/x", **{**SETTINGS, "PATH": path})
    words = [line.split()[4 if line.startswith("gcloud") else 0] for line in (tmp_path / "log").read_text().splitlines()]
    assert words == ["create", "ssh", "scp", "ssh", "ssh", *says]
    assert done.returncode == (state == "READY") and ("mend it" in done.stderr) == (state == "READY")


@pytest.mark.parametrize("script", ["tpu_vm.sh", "queued.sh"])
def test_the_whole_checkout_is_copied_and_nothing_old_stays(script):
    settings = {name: value for name, value in SETTINGS.items() if name != "SOURCE"}
    first, second, _ = launched(f"{script} install", "--dry-run", **settings).stdout.splitlines()
    assert "rm" in first and f"--recurse {ROOT} dit:diffusion_jax" in second


def test_ctrl_c_ends_every_process(tmp_path):
    path = stubs(tmp_path, python3="exec sleep 60")
    command = ["bash", str(ROOT / "launch" / "local.sh"), "--config", "c.py"]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)             # what runs in the background ignores it
    with subprocess.Popen(command, env={"PATH": path}, start_new_session=True, stderr=subprocess.DEVNULL,
                          preexec_fn=heard) as shell:
        while not (tmp_path / "log").exists() or len((tmp_path / "log").read_text().splitlines()) < 2:
            time.sleep(0.02)
        os.killpg(shell.pid, signal.SIGINT)
        shell.wait(10)
    for _ in range(100):
        try:
            os.killpg(shell.pid, 0)                                # is anything left of its group?
        except ProcessLookupError:
            return
        time.sleep(0.02)
    os.killpg(shell.pid, signal.SIGKILL)
    raise AssertionError("its processes live on")


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
