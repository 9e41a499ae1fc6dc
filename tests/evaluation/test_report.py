"""Where figures go: the table, report.json and report.html."""
import json

import numpy as np

from diffusion_jax.evaluation.report import Gallery, Measured, page, table, write

FIGURES = {"FID[x]": 1.23456, "samples": 20, "sampler": "ddim", "best of": {"1": 0.5, "2": 0.75},
           "classes": [{"class": "<cat>", "samples": 2}, {"class": "dog", "recall": 0.5}], "warnings": ["too few"]}


def test_the_table_is_aligned_and_leaves_out_what_has_a_place_of_its_own():
    lines = table(FIGURES).splitlines()
    assert lines == [f"{'FID[x]':40s} 1.2346", f"{'samples':40s} 20", f"{'sampler':40s} ddim",
                     f"{'best of':40s} 1: 0.50  2: 0.75"]
    assert Measured(FIGURES).numbers == {"FID[x]": 1.23456, "samples": 20}


def test_a_report_is_written_and_said(tmp_path, capsys):
    write(tmp_path / "run", Measured(FIGURES))
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == FIGURES
    said = capsys.readouterr()
    assert "FID[x]" in said.out and "report.html" in said.out and said.err == "warning: too few\n"


def test_the_page_shows_the_pictures_behind_the_figures(tmp_path):
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 256, (3, 8, 8, 1), np.uint8)
    nearest = rng.integers(0, 256, (2, 4, 8, 8, 1), np.uint8)
    text = page(tmp_path, Measured(FIGURES, Gallery(samples, nearest, np.ones((2, 4)))))
    for part in ("1.2346", "Samples", "Nearest images of the reference", "Classes", "&lt;cat&gt;", "too few", "image/png;base64"):
        assert part in text
    assert "Training" not in text
    bare = page(tmp_path, Measured({"FID[x]": 1.0}))
    assert "Samples" not in bare and "image/png" not in bare


def test_a_torn_line_of_the_metrics_does_no_harm(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n[3]\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    assert "Training" in page(tmp_path, Measured({}))
    (tmp_path / "metrics.jsonl").write_text('{"st')
    assert "Training" not in page(tmp_path, Measured({}))
