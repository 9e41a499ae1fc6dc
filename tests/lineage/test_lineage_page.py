"""lineage.html, its tables and figures, of a comparison with a failed stage."""
import csv
import io
import json
import re
import xml.etree.ElementTree as xml
from html.parser import HTMLParser

import pytest
from made import comparison

from diffusion_jax.lineage import page

VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """What a page holds: its elements, and whether they close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.sources, self.names = [], [], [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.names.add(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.sources += [values["src"]] if "src" in values else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lineage")
    assert page.write(comparison(), str(folder)) == str(folder / "lineage.html")
    return folder


def test_the_page_stands_alone_and_hangs_together(written):
    text = (written / "lineage.html").read_text()
    reader = Reader(text)
    assert not reader.open and "script" not in reader.names and "link" not in reader.names
    assert all(source.startswith("data:image/") for source in reader.sources) and "http" not in re.sub(r"data:[^\"]+", "", text)
    assert len(set(reader.ids)) == len(reader.ids) and {"dalle", "adm", "dit", "cads"} <= set(reader.ids)
    assert {link[1:] for link in reader.links} <= set(reader.ids)
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_a_failed_stage_is_shown_with_its_error_escaped(written):
    text = (written / "lineage.html").read_text()
    assert "It failed here: it ran &lt;out&gt; of memory" in text and "<out>" not in text
    assert "One model, trained on pairs from the web" in text


def test_what_the_page_says_of_a_system(written):
    text = (written / "lineage.html").read_text()
    section = text[text.index('id="dit"'):text.index('id="cads"')]
    for part in ("A picture, or its latents, is cut into patches", "Here: FID 3.000 ± 0.010, lower than the 5.000 ± 0.010 of",
                 f"--config {written}/pages/dit.py --workdir {written}/dit", "--mode sample --label 0", "2212.09748",
                 ">Label</text>"):
        assert part in section, part
    assert f"--workdir {written}/dit --mode sample --label 0 --guidance 4.0 --cads s=0.1" in text[text.index('id="cads"'):]


def test_the_table_reads_back_without_the_times_of_a_clock(written):
    rows = list(csv.DictReader(io.StringIO((written / "lineage.csv").read_text())))
    assert [row["key"] for row in rows] == ["dalle", "adm", "dit", "cads"]
    assert float(rows[2]["FID"]) == pytest.approx(3) and float(rows[2]["FID deviation"]) == pytest.approx(0.01)
    assert rows[0]["FID"] == "" and rows[0]["error"] == "it ran <out> of memory" and "seconds per picture" not in rows[0]
    tree = json.loads((written / "lineage.json").read_text())
    assert tree["systems"][1]["curve"][1] == {"value": 4, "FID": [5.99, 6.0, 6.01]} | {
        name: pytest.approx([value - 0.01, value, value + 0.01])
        for name, value in dict(recall=0.5, coverage=0.6, accuracy=0.9).items()}
    assert {"key": "dit", "outcome": "holds"}.items() <= tree["claims"][-1].items()


def test_figures_are_pictures_and_drawings_for_both_schemes(written):
    names = {file.name for file in (written / "figures").iterdir()}
    drawn = {"tradeoff", "fidelity", "compute", "curve_adm", "curve_dit"}
    assert names == {f"{name}.{kind}" for name in drawn for kind in ("png", "svg")} | {"adm.png", "dit.png", "cads.png"}
    for name in drawn:
        xml.parse(written / "figures" / f"{name}.svg")


def test_the_same_comparison_is_the_same_files(written):
    before = {file.name: file.read_bytes() for file in written.rglob("*.*") if file.is_file()}
    page.write(comparison(), str(written))
    assert before == {file.name: file.read_bytes() for file in written.rglob("*.*") if file.is_file()}


def test_a_formula_has_its_letters_and_its_indices():
    assert page.formula("x_t = alpha x0 + p(a | z_<i)^2") == (
        "x<sub>t</sub> = &alpha; x<sub>0</sub> + p(a | z<sub>&lt;i</sub>)<sup>2</sup>")
    assert page.power(4e12) == "4 &times; 10<sup>12</sup>" and page.power(30) == "30"
