"""Pages in frames: the browser takes their text for text, and gives it no right."""
from html.parser import HTMLParser

from diffusion_jax.evaluation.frames import lineages, reports


class Frames(HTMLParser):
    """The attributes of each frame of a page."""

    def __init__(self, page):
        super().__init__()
        self.frames = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "iframe":
            self.frames.append(dict(attrs))


def test_reports_keep_their_text_and_have_no_right(tmp_path):
    text = '<p>"quoted" & <script>alert(1)</script></p>'
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "report.html").write_text(text)
    first, second = Frames(reports([str(tmp_path / "a"), str(tmp_path / "b")])).frames
    assert first["srcdoc"] == text and "sandbox" in first and first["sandbox"] is None
    assert "<h1>b</h1>" in second["srcdoc"]


def test_a_lineage_is_shown_once_for_all_its_runs(tmp_path):
    for name in ("path/dit", "path/edm2", "other/run"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "path" / "lineage.html").write_text("<h1>The lineage</h1>")
    folders = [str(tmp_path / name) for name in ("path/dit", "path/edm2", "other/run")]
    assert [frame["srcdoc"] for frame in Frames(lineages(folders)).frames] == ["<h1>The lineage</h1>"]
    assert lineages(folders[2:]) == ""
