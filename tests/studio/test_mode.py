"""Mode studio before it serves: who may see the page, which runs it opens, what its door refuses."""
import shutil
from pathlib import Path

import pytest
from pipelines.toy_task import LABEL, page, write

from diffusion_jax.build import ConfigError
from diffusion_jax.modes import studio
from diffusion_jax.modes.options import Weights, built
from diffusion_jax.studio import bounds


def options(**leaves):
    return built(studio.Options, leaves)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_machines_need_a_password(host, tmp_path):
    with pytest.raises(ConfigError, match="lets other machines in: give --password"):
        options(host=host)
    assert options(host=host, password="x").host == host
    assert options(host=host, auth=str(tmp_path / "users")).host == host


@pytest.mark.parametrize(("leaves", "says"), [
    (dict(password="x", auth="y"), "not both"),
    (dict(password=""), "is empty"),
    (dict(port=70000), "port is 0 ... 65535"),
    (dict(port=-1), "port is"),
])
def test_what_does_not_go_together_is_refused(leaves, says):
    with pytest.raises(ConfigError, match=says):
        options(**leaves)


def test_passwords(tmp_path):
    file = tmp_path / "users.txt"
    file.write_text("ann:one:two\n\nbob:three\n")
    right = studio.checked(studio.allowed(options(auth=str(file))))
    assert right("ann", "one:two") and right("bob", "three")
    assert not right("ann", "three") and not right("eve", "") and not right("eve", "three") and not right("", "")
    one = studio.checked(studio.allowed(options(password="s3cret")))
    assert one("anybody", "s3cret") and not one("anybody", "") and not one("anybody", "s3creT")
    assert studio.allowed(options()) is None


@pytest.mark.parametrize("text", ["", "\n", "ann\n", "ann:\n", ":x\n"])
def test_a_file_of_passwords_that_lacks_one_is_refused(tmp_path, text):
    (tmp_path / "users.txt").write_text(text)
    with pytest.raises(ConfigError, match="user:password"):
        studio.allowed(options(auth=str(tmp_path / "users.txt")))


def test_several_runs_have_their_names(tmp_path):
    write(tmp_path / "a", page(LABEL))
    for name in ("b", "c,d", "deep/a"):
        shutil.copytree(tmp_path / "a", tmp_path / name)
    assert list(studio.opened(f"{tmp_path}/a, {tmp_path}/b", Weights())) == ["a", "b"]
    assert list(studio.opened(f"{tmp_path}/c,d", Weights())) == ["c,d"]
    twice = [f"{tmp_path}/a", f"{tmp_path}/deep/a"]
    assert list(studio.opened(",".join(twice), Weights())) == twice
    with pytest.raises(ConfigError, match="there is no folder"):
        studio.opened(f"{tmp_path}/a,{tmp_path}/none", Weights())


@pytest.mark.parametrize(("body", "refused"), [
    (b"", False),
    (b'{"data": ["a cat: http://x", 3]}', False),
    (b'{"data": [{"path": "/tmp/x.png", "meta": {}}]}', False),
    (b'{"data": [{"path": "http://10.0.0.1/x.png"}]}', True),
    (b'{"data": [{"path": "\\u0068ttps://x"}]}', True),
    (b'{"data": [[{"a": {"path": " ftp://x"}}]]}', True),
    (b'{"data": [', True),
    (b"[" * 100_000, True),
])
def test_addresses_are_not_fetched(body, refused):
    assert studio.names_address(body) is refused


def test_without_gradio_the_mode_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(studio, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install 'diffusion_jax\\[studio\\]'"):
        studio.run(options(), str(tmp_path))


def test_the_page_is_small():
    """It stands on what lies below: what is no page belongs there."""
    files = Path(bounds.__file__).parent.glob("*.py")
    assert sum(len(file.read_text().splitlines()) for file in files) <= 600
