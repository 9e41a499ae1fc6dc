"""Mode `page`: a page written out to be edited."""
import pytest
from own_pictures import classes
from pages import files, refused

from diffusion_jax.runs import pages


def test_a_folder_s_page_is_written_out_and_read_back(cli, tmp_path):
    photos, out = classes(tmp_path / "photos"), tmp_path / "pages" / "mine.py"
    flags = ("--config", f"folder:{photos}/,edm2,tiny", "--config.size=16", "--config.steps=7")
    done = cli("--mode", "page", *flags, "--out", out)
    assert done.code == 0 and f"train it with --config {out}" in done.out
    expected, _ = pages.changed(flags[1], ["main", *flags[2:]])
    assert pages.read(str(out)) == expected and expected.steps == 7 and expected.task.shape == (16, 16, 3)
    before = files(tmp_path)
    again = cli("--mode", "page", *flags, "--out", out)
    assert refused(again, "mine.py is there already: choose another --out") and files(tmp_path) == before


@pytest.mark.parametrize(("arguments", "says"), [
    (("--config", "digits"), "mode page needs --out"), (("--out", "mine.py"), "mode page needs --config"),
    (("--config", "digits", "--out", "mine.txt"), "it ends in .py"),
    (("--config", "digits", "--out", "x.py", "--workdir", "run"), "leave --workdir out"),
    (("--config", "digits", "--out", "x.py", "--config.stepz=3"), "did you mean 'steps'"),
    (("--config", "digts", "--out", "x.py"), "did you mean"),
    (("--config", "digits", "--out", "x.py", "--config.model.depht=3"), "did you mean 'depth'"),
    (("--config", "digits", "--out", "x.py", "--config.model.depth=-1"), "depth of"),
    (("--config", "digits", "--out", "x.py", "--config.data.train.splitt=test"), "did you mean 'split'"),
    (("--config", "digits", "--out", "x.py", "--config.task.cond.wdth=3"), "did you mean 'width'"),
])
def test_what_cannot_be_written_is_one_line(cli, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert refused(cli("--mode", "page", *arguments), says) and not files(tmp_path)


def test_other_modes_need_their_folder(cli):
    assert refused(cli("--mode", "sample"), "give --workdir")
    assert "--workdir FOLDER" in cli("--mode", "sample", "--help").out
    assert "--workdir FOLDER" not in cli("--mode", "page", "--help").out
