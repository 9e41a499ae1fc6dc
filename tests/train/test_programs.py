"""Where compiled programs are kept, who may write there, and that a damaged one is replaced."""
import contextlib
import os
import stat

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from diffusion_jax.build import ConfigError
from diffusion_jax.train import process

OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_min_entry_size_bytes",
           "jax_compilation_cache_max_size")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """As in a process that has just begun, whose user's home is tmp_path."""
    before = {name: jax.config.values[name] for name in OPTIONS}
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def folder():
    return jax.config.values["jax_compilation_cache_dir"]


def entries(folder):
    return sorted(folder.glob("*-cache"))


def compiled(value):
    """Compiles a program of its own for every value."""
    jax.clear_caches()
    return float(jax.jit(lambda x: jnp.sin(x) + value)(jnp.float32(0)))


@pytest.mark.parametrize(("root", "want"), [
    (None, ".cache"), ("elsewhere", "elsewhere"), ("", ".cache"), ("./relative", ".cache")])
def test_programs_are_kept_in_the_user_s_own_cache(tmp_path, monkeypatch, root, want):
    if root is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / root) if root == "elsewhere" else root)
    process.keep_compiled(None)
    assert folder() == str(tmp_path / want / "diffusion_jax" / "compiled")
    for name in ("diffusion_jax", "diffusion_jax/compiled"):
        assert stat.S_IMODE((tmp_path / want / name).stat().st_mode) == 0o700
    assert jax.config.values["jax_compilation_cache_max_size"] == 5 * 10**9


def test_what_lies_beside_a_run_is_never_read(tmp_path, monkeypatch):
    (tmp_path / "runs" / ".compiled").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "runs")
    process.keep_compiled(None)
    assert ".compiled" not in folder()


@pytest.mark.parametrize("named", ["here", "~/here"])
def test_another_folder_is_the_user_s_word(tmp_path, named, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process.keep_compiled(named)
    assert os.path.abspath(folder()) == str(tmp_path / "here")


def test_none_and_jax_s_own_go_before(tmp_path):
    process.keep_compiled("")
    assert folder() is None
    jax.config.update("jax_compilation_cache_dir", "/jax/says")
    process.keep_compiled(str(tmp_path / "other"))
    assert folder() == "/jax/says"


@pytest.mark.parametrize("named", ["file", "file/in/it", "~/file"])
def test_a_file_is_no_folder_for_programs(tmp_path, named, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for before in (None, "/jax/says"):
        jax.config.update("jax_compilation_cache_dir", before)
        with pytest.raises(ConfigError, match=r"--compiled .*file.* cannot be made: .*file is a file, give a folder"):
            process.keep_compiled(named)
        assert folder() == before


def test_a_bound_of_the_user_s_own_stays(tmp_path):
    jax.config.update("jax_compilation_cache_max_size", 12345)
    process.keep_compiled(None)
    assert jax.config.values["jax_compilation_cache_max_size"] == 12345


def of_others(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)


def open_to(mode, name):
    def make(tmp_path, monkeypatch):
        (tmp_path / ".cache" / "diffusion_jax" / "compiled").mkdir(parents=True, mode=0o700)
        (tmp_path / ".cache" / name).chmod(mode)
    return make


def a_file(tmp_path, monkeypatch):
    (tmp_path / ".cache").touch()


@pytest.mark.parametrize(("make", "says"), [
    (of_others, "belongs to another user"), (open_to(0o770, "diffusion_jax/compiled"), "others may write to"),
    (open_to(0o707, "diffusion_jax/compiled"), "others may write to"), (open_to(0o777, "diffusion_jax"), "others may write to"),
    (a_file, "Not a directory"),
], ids=["another's", "the group's", "all's", "all's around", "no folder"])
def test_a_cache_that_is_not_safe_is_not_used_and_said_once(tmp_path, monkeypatch, caplog, make, says):
    make(tmp_path, monkeypatch)
    process.keep_compiled(None)
    assert folder() is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert says in line and "programs are not kept" in line and "--compiled FOLDER" in line and "\n" not in line


def cut(file):
    file.write_bytes(file.read_bytes()[:100])


def empty(file):
    file.write_bytes(b"")


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def rubbish(file):
    file.write_bytes(b"rubbish" * 100)


def of_nothing(file):
    """Whole as far as its compression goes, but no program."""
    file.write_bytes(__import__("jax._src.compilation_cache", fromlist=["x"]).compress_executable(b"\0\0\0\1no program"))


@pytest.mark.parametrize("damage", [pytest.param(cut, marks=pytest.mark.slow), empty, flip, rubbish, of_nothing])
def test_a_damaged_program_is_compiled_again_and_replaced(tmp_path, caplog, recwarn, damage):
    value = 1.0 + [cut, empty, flip, rubbish, of_nothing].index(damage)
    process.keep_compiled(str(tmp_path / "kept"))
    assert compiled(value) == value
    kept = entries(tmp_path / "kept")
    for file in kept:
        damage(file)
    assert compiled(value) == value
    assert entries(tmp_path / "kept") == kept
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(kept) and all("is damaged" in line and "\n" not in line for line in lines)
    caplog.clear()
    assert compiled(value) == value and not caplog.records                      # the next start finds it whole
    assert not [warning for warning in recwarn if "persistent compilation cache" in str(warning.message)]


def test_programs_without_a_date_of_use_do_not_stop_further_ones(tmp_path, recwarn):
    process.keep_compiled(str(tmp_path))
    compiled(20.0)
    for date in tmp_path.glob("*-atime"):                                       # as a kill between the two files leaves them
        date.unlink()
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_compilation_cache_max_size", -1)
    compilation_cache.reset_cache()
    before = entries(tmp_path)
    process.keep_compiled(str(tmp_path))
    compiled(21.0)
    assert len(entries(tmp_path)) > len(before)
    assert not [warning for warning in recwarn if "persistent compilation cache" in str(warning.message)]


def test_a_newer_jax_that_reads_elsewhere_is_left_alone(monkeypatch):
    from jax._src import compilation_cache as own

    with contextlib.suppress(AttributeError):
        monkeypatch.delattr(own, "get_executable_and_time")
    process.replace_damaged()
    assert not hasattr(own, "get_executable_and_time")
