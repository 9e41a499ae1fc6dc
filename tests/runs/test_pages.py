"""From the text of --config to a page."""
import pytest
from ml_collections import ConfigDict

from diffusion_jax.build import ConfigError
from diffusion_jax.runs import pages

PAGE = "from ml_collections import ConfigDict\n\ndef get_config(arg='none'):\n    return ConfigDict(dict(arg=arg))\n"


@pytest.mark.parametrize("text", [
    "digits", "digits.py", "configs/digits.py", "digits:tiny", "digits.py:tiny", "configs/digits.py:tiny"])
def test_pages_of_the_package_are_found_from_any_folder(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = pages.read(text)
    assert config.model.name == "diffusion_jax.models.dit:DiT"
    assert config.steps == (4 if text.endswith(":tiny") else 1000)


def test_all_pages_are_installed():
    assert set(pages.installed()) >= {"digits", "digits_glide", "imagenet256_dit_xl2", "stable_diffusion"}
    assert "__init__" not in pages.installed()


@pytest.mark.parametrize(("end", "want"), [("", "none"), (":", ""), (":a,b", "a,b"), (":a:b", "a:b")])
def test_what_stands_behind_the_colon_is_the_argument(end, want, tmp_path):
    (tmp_path / "mine.py").write_text(PAGE)
    assert pages.read(f"{tmp_path}/mine.py{end}") == ConfigDict(dict(arg=want))


def test_a_page_of_one_s_own_comes_before_one_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.py").write_text(PAGE)
    assert pages.read("digits.py").arg == "none" and pages.read("digits").steps == 1000
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pages.read("~/digits.py").arg == "none"


def test_a_page_may_return_a_mapping(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return dict(steps=3)\n")
    assert pages.read(f"{tmp_path}/mine.py") == ConfigDict(dict(steps=3))


@pytest.mark.parametrize("text", ["digts", "digts.py", "configs/digts.py", "other/digits.py", "digits.txt"])
def test_an_unknown_page_names_the_nearest_and_all(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        pages.read(text)
    message = str(error.value)
    assert "\n" not in message and "did you mean 'digits'?" in message
    assert all(name in message for name in ("digits_glide", "emoji_clip"))


@pytest.mark.parametrize(("body", "says"), [
    ("def get_config():\n    return 1 / 0\n", "ZeroDivisionError: division by zero"),
    ("import no_such_module\n", r"mine.py:1 fails: ModuleNotFoundError"),
    ("def get_config():\n    return helper({})\n\n\ndef helper(x):\n    return x['b']\n", r"mine.py:6 fails: KeyError: 'b'"),
    ("import json\n\ndef get_config():\n    return json.loads('{')\n", r"mine.py:4 fails: JSONDecodeError"),
    ("def get_config(arg):\n    return arg\n", r"mine.py fails: TypeError"),
    ("def get_config(:\n", "SyntaxError"),
    ("steps = 3\n", "AttributeError.*get_config"),
    ("def get_config():\n    return 3\n", "returns int: it is to return a ConfigDict"),
])
def test_a_page_that_fails_says_where(body, says, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(body)
    with pytest.raises(ConfigError, match=says) as error:
        pages.read(f"{tmp_path}/mine.py")
    assert "\n" not in str(error.value) and "mine.py" in str(error.value)
    trace = capsys.readouterr().err
    if "ZeroDivision" in says:
        assert "mine.py\", line 2, in get_config" in trace
    if "KeyError" in says:
        assert "line 2, in get_config" in trace and "line 6, in helper" in trace
    assert "runs/pages.py" not in trace


@pytest.mark.parametrize(("name", "content"), [
    ("A.npz", b"PK\x03\x04junk"), ("picture.png", b"\x89PNG\r\n"), ("weights.safetensors", b"{}"), ("page.json", b"{}"),
    ("page.py", b"\x93NUMPY\x00"), ("page", b"a\x00b"), ("page.txt", b"text"), ("notes.md", b"# Notes")])
def test_what_is_no_python_is_one_line(name, content, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{name} is no page: a page is a Python file with get_config"):
        pages.read(str(tmp_path / name))
    assert not capsys.readouterr().err


def test_a_folder_is_no_page(tmp_path):
    with pytest.raises(ConfigError, match="is a folder: a page is a Python file"):
        pages.read(str(tmp_path))


def test_errors_that_a_page_means_stay_as_they_are():
    with pytest.raises(ConfigError, match="unknown variant of this page 'tinny'"):
        pages.read("digits:tinny")


def test_a_page_finds_its_neighbours_by_its_own_path(tmp_path):
    (tmp_path / "neighbour.txt").write_text("12")
    read = "int(Path(__file__).with_name('neighbour.txt').read_text())"
    page = f"from pathlib import Path\n\ndef get_config():\n    return dict(steps={read})\n"
    (tmp_path / "mine.py").write_text(page)
    assert pages.read(f"{tmp_path}/mine.py").steps == 12


# Keywords of get_config -----------------------------------------------------------------------------------------------------

KEYWORDS = "def get_config(arg='', size=None, preset=None):\n    return dict(arg=arg, size=size, preset=preset, steps=3)\n"


@pytest.fixture
def keyed(tmp_path):
    (tmp_path / "mine.py").write_text(KEYWORDS)
    return f"{tmp_path}/mine.py:photos/"


@pytest.mark.parametrize(("flags", "want"), [
    (["--config.size=64"], dict(size=64)), (["--config.size", "64"], dict(size=64)), (["-config.size=0.5"], dict(size=0.5)),
    (["--config.preset=small", "--config.size=1e2"], dict(preset="small", size=100.0)),
    (["--config.size=8", "--config.size=9"], dict(size=9)), (["--config.preset=a=b"], dict(preset="a=b")),
    (["--config.preset="], dict(preset="")), (["--config.preset=1_0"], dict(preset="1_0")),
    (["--config.steps=5", "--config.size=8"], dict(steps=5, size=8)), (["--config.size=inf"], dict(size="inf")),
])
def test_a_keyword_is_given_to_get_config(keyed, flags, want):
    page, rest = pages.changed(keyed, ["main", *flags, "--num=3"])
    assert page.to_dict() == dict(arg="photos/", size=None, preset=None, steps=3) | want and rest == ["main", "--num=3"]


def test_a_key_of_the_page_stays_one(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config(arg='', size=None):\n    return dict(steps=3, data=dict(size=8))\n")
    page, _ = pages.changed(f"{tmp_path}/mine.py", ["main", "--config.data.size=4", "--config.init=runs/x"])
    assert page.to_dict() == dict(steps=3, data=dict(size=4), init="runs/x")


@pytest.mark.parametrize(("flags", "says"), [
    (["--config.sise=64"], "unknown keyword of this page 'sise': did you mean 'size'"),
    (["--config.size"], "config.size has no value"),
])
def test_a_misspelt_keyword_and_one_without_a_value_are_refused(keyed, flags, says):
    with pytest.raises(ConfigError, match=says):
        pages.changed(keyed, ["main", *flags])
