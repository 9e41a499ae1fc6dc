"""The benchmark of a GPU runs to its end without one, at tiny sizes."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "bench_gpu.py"


@pytest.mark.slow
def test_all_parts_without_pytorch_run_on_a_cpu(tmp_path):
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, str(SCRIPT), "--tiny", "--out", str(out), "attention", "steps", "sampling"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 8 and not any("error" in row for row in rows)
    steps = [row for row in rows if row["part"] == "steps"]
    # (1) and the operations, from one another's columns.
    for row in steps:
        assert row["images_per_s"] == pytest.approx(1e3 * row["batch"] / row["step_ms"])
        assert row["mfu"] * 989 == pytest.approx(row["tflops"])
    # bfloat16 has eight bits: no error beyond a few of their last.
    for row in rows[:3]:
        assert all(0 < row["xla"][part] < 2**-6 for part in ("out", "dq", "dk", "dv"))


@pytest.mark.slow
def test_what_does_not_end_in_time_is_a_row_and_a_failure(tmp_path):
    command = [sys.executable, str(SCRIPT), "--tiny", "--minutes", "0", "attention"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [row["error"] for row in rows] == ["not done after 1 s"] * 3
