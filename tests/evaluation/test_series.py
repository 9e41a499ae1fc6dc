"""Rows of figures as a table that grows, and as panels."""
import csv
from pathlib import Path

import pytest

from diffusion_jax.data import image
from diffusion_jax.evaluation import series

ROWS = [{"guidance": "1", "FID[x]": 3.0, "precision[x]": 0.5, "recall[x]": 0.5, "samples": 20},
        {"guidance": "2", "FID[x]": 2.0, "precision[x]": 0.6, "recall[x]": 0.4, "samples": 20}]


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_grows_row_by_row(tmp_path):
    series.write_table(tmp_path / "x" / "sweep", ROWS[:1])
    assert [row["guidance"] for row in table(tmp_path / "x" / "sweep.csv")] == ["1"]
    series.write_table(tmp_path / "x" / "sweep", [*ROWS, {"guidance": "3", "accuracy": 1.0}])
    rows = table(tmp_path / "x" / "sweep.csv")
    assert [row["guidance"] for row in rows] == ["1", "2", "3"] and rows[2]["FID[x]"] == "" and rows[2]["accuracy"] == "1.0"
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["sweep.csv"]


def test_what_varies_is_drawn(tmp_path):
    assert series.panels("guidance", ROWS) == [
        ("guidance", "FID[x]"), ("guidance", "precision[x]"), ("guidance", "recall[x]"), ("precision[x]", "recall[x]")]
    series.write(tmp_path / "sweep", "guidance", ROWS)
    assert image.read(tmp_path / "sweep.png").shape[1] > 300


def test_one_row_is_no_reason_to_fail(tmp_path):
    series.write(tmp_path / "sweep", "guidance", ROWS[:1])
    assert (tmp_path / "sweep.png").is_file()


def test_names_are_no_formulas_and_files_are_whole(tmp_path, monkeypatch):
    rows = [{"$\\frac{": value, "FID[$x]": float(value)} for value in (1, 2)]
    series.write(tmp_path / "sweep", "$\\frac{", rows)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for function, between in ((series.write_table, ()), (series.draw, ("guidance",))):
        with pytest.raises(KeyboardInterrupt):
            function(tmp_path / "sweep", *between, ROWS)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
