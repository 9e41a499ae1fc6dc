"""What this folder's tests share: runs with random weights, a desk of them, and a studio served in a process of its own."""
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from pages import page as page_of
from pipelines.toy_task import LABEL, LOW_RES, TEXT, page, write

from diffusion_jax.runs.folder import save_start
from diffusion_jax.train.state import task_of

TESTS = Path(__file__).parents[1]
COMMAND = "import sys, pipelines.toy_task; from diffusion_jax import main; main.guarded(['main', *sys.argv[1:]])"


@pytest.fixture(scope="package")
def folders(tmp_path_factory):
    """Runs whose networks are one line: of labels, of texts, an upsampler."""
    root = tmp_path_factory.mktemp("studio")
    return SimpleNamespace(
        label=write(root / "label", page(LABEL)),
        text=write(root / "text", page(TEXT)),
        upsampler=write(root / "upsampler", page(LABEL, LOW_RES, side=16)),
    )


@pytest.fixture(scope="package")
def digits(tmp_path_factory):
    """A run of configs/digits.py before its first step: slow enough to be stopped, and no two seeds make the same picture."""
    config = page_of("digits", "").to_dict()
    folder = tmp_path_factory.mktemp("runs") / "digits"
    batch = {"image": jnp.zeros((1, 8, 8, 1)), "label": jnp.zeros(1, jnp.int32)}
    save_start(folder, config, task_of(config).init(jax.random.key(0), batch))
    return folder


@pytest.fixture(scope="package")
def desk(folders):
    """The runs of labels and of texts."""
    from diffusion_jax.pipelines.pipeline import pipeline
    from diffusion_jax.studio.desk import Desk

    return Desk({"label": pipeline(folders.label), "text": pipeline(folders.text)})


@pytest.fixture(scope="package")
def served(folders, digits, tmp_path_factory):
    """A function of flags: the address of a studio on the runs of digits' size and of texts."""
    pytest.importorskip("gradio", reason="the studio needs gradio: pip install '.[studio]'")
    processes = []

    def serve(*flags):
        out = tmp_path_factory.mktemp("served") / "out.txt"
        environment = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "GRADIO_SHARE": "true"}
        arguments = ["--mode", "studio", "--workdir", f"{digits},{folders.text}", "--port", "0", *flags]
        arguments += ["--compiled", str(tmp_path_factory.getbasetemp() / "compiled")]
        with out.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, *arguments], env=environment, stdout=file, stderr=subprocess.STDOUT)
        processes.append(process)
        for _ in range(1200):
            text = out.read_text()
            if "http://" in text or process.poll() is not None:
                break
            time.sleep(0.1)
        assert "http://" in text, text
        return SimpleNamespace(url=text[text.index("http://"):].split()[0], out=out, process=process)

    yield serve
    for process in processes:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="package")
def studio(served):
    """A studio that only this machine reaches."""
    return served()
