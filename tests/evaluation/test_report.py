"""Where figures go: the table, report.json and report.html."""
import json
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.evaluation import report
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


GOOD = b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'


ODD = [
    b"[]", b"[3]", b"3", b"null", b'"step"', b'{"step": "x", "loss": 1}', b'{"step": 3, "loss": "x"}',
    b'{"step": 3, "loss": [1]}', b'{"step": 3, "loss": {"a": 1}}', b'{"step": 3, "loss": null}',
    b'{"step": NaN, "loss": 1}', b'{"step": 3, "loss": Infinity}', b'{"step": 3, "loss": 1e999}', b'{"step": 3, "loss": 1e308}',
    b'{"step": 3, "loss": 1' + b"0" * 400 + b"}", b'{"step": true, "loss": 1}',
    b'{"step": [3], "loss": 1}', b'{"loss": 1}', b'{"step": 3}', b"\x00" * 50,
    b'{"step": 3, "$\\\\frac{": 1}', b'{"step": 3, "' + b"x" * 10_000 + b'": 1}',
]


@pytest.mark.parametrize("line", [
    b'{"step": 3, "lo', b'{"step": 3, "loss": NaN}', b'{"step": 3, "loss": ' + b"1" * 5000 + b"}", b"\xff\xfe\x00binary",
    b"[" * 100_000, json.dumps({"step": 3} | {f"m{i}": i for i in range(500)}).encode(),
    *(pytest.param(line, marks=pytest.mark.slow) for line in ODD),
], ids=lambda line: line[:24].decode(errors="replace"))
def test_an_odd_last_line_of_the_metrics_loses_no_report(tmp_path, line, monkeypatch):
    """The curves of the good lines are there, whatever a kill or a broken disk left behind them."""
    drawn = {}
    monkeypatch.setattr(report, "_inline", lambda png: "<img>")
    panels = report._panels

    def noted(names, lines):
        drawn.update(names=names, lines=lines)
        return panels(names[:2], lines)

    monkeypatch.setattr(report, "_panels", noted)
    (tmp_path / "metrics.jsonl").write_bytes(GOOD + line)
    write(tmp_path, Measured(FIGURES))
    assert "Training" in (tmp_path / "report.html").read_text()
    assert [row for row in drawn["lines"] if "loss" in row][:2] == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    assert all(isinstance(value, float) and np.isfinite(value) for row in drawn["lines"] for value in row.values())
    assert len(drawn["names"]) <= report.PANELS


@pytest.mark.parametrize("content", [b"", b'{"st', b"[]", b'{"step": 1}', b'{"step": "x", "loss": 1}'])
def test_metrics_without_a_number_have_no_curves(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert "Training" not in page(tmp_path, Measured({}))


# Files ----------------------------------------------------------------------------------------------------------------------


def test_every_report_is_kept_beside_the_newest(tmp_path):
    reports = [Measured({"FID": float(i)}, Gallery(), name) for i, name in enumerate(("a-step4", "b", "a-step4"))]
    for each in (*reports, reports[1]):                                      # the last one says nothing new
        write(tmp_path, each)
    assert json.loads((tmp_path / "report.json").read_text()) == {"FID": 1.0}
    kept = {path.stem: json.loads(path.read_text())["FID"] for path in (tmp_path / "reports").glob("*.json")}
    assert kept == {"a-step4": 0.0, "b": 1.0, "a-step4-2": 2.0}
    assert {path.stem for path in (tmp_path / "reports").glob("*.html")} == set(kept)


@pytest.mark.parametrize(("options", "which", "name"), [
    ({}, {}, "features"),
    ({"guidance": 2.0, "num": 40}, {"step": 4, "weights": "ema"}, "features-step4-weightsema-guidance=2.0-num=40"),
    ({"features": "runs/judge", "reference": "/data/x y.npz"}, {}, "features-features=judge-reference=x_y.npz"),
    ({"sampler": "ddim,eta=0.5"}, {}, "features-sampler=ddim,eta=0.5"),
    ({"upsampler": ("runs/a", "runs/b")}, {}, "features-upsampler=a,b"),
    ({"template": "../../etc/\x00\n\u00e9{}"}, {}, "features-template=_"),
])
def test_a_report_s_name_says_of_what_it_is(options, which, name):
    assert report.name_of("features", options, **which) == name


def test_a_report_s_name_fits_any_disk():
    names = {report.name_of("features", {"template": "x" * 5000 + str(i)}) for i in range(3)}
    assert len(names) == 3 and all(len(name) <= report.LONGEST for name in names)


def test_numbers_of_numpy_and_odd_names_are_written(tmp_path, capsys):
    write(tmp_path, Measured({"FID": np.float32(1.5), "n": np.int64(3), "list": np.arange(2), "reference": "x\udcff"}))
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored == {"FID": 1.5, "n": 3, "list": [0, 1], "reference": "x\udcff"}
    assert "udcff" in (tmp_path / "report.html").read_text() and "udcff" in capsys.readouterr().out


@pytest.mark.parametrize("block", ["report.json/", "report.html/", "reports"])
def test_a_report_that_cannot_be_written_is_refused_first(tmp_path, block):
    (tmp_path / block).mkdir() if block.endswith("/") else (tmp_path / block).touch()
    with pytest.raises(ConfigError, match="choose another"):
        report.check(tmp_path)


def test_a_folder_that_is_none_takes_no_report(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="choose another"):
        report.check(tmp_path / "file" / "run")


def test_a_report_that_ends_half_way_leaves_the_last_one(tmp_path, monkeypatch):
    write(tmp_path, Measured({"FID": 1.0}))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, Measured({"FID": 2.0}))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
