"""Mode `posthoc_ema`: averages made after training, of the snapshots of a run."""
import numpy as np
import pytest
from pages import ask, page

from diffusion_jax.build import ConfigError
from diffusion_jax.modes import posthoc_ema
from diffusion_jax.modes.options import built
from diffusion_jax.runs.folder import open_run, save_start
from diffusion_jax.train.checkpoint import load
from diffusion_jax.train.state import plain


@pytest.mark.slow
def test_averages_made_afterwards_sample_like_any_other(tmp_path):
    ask("train", tmp_path, config=page("digits_edm2"))
    ask("posthoc_ema", tmp_path, std="0.05,0.2")
    for std in ("0.05", "0.2"):
        ask("sample", tmp_path / "posthoc" / std, out=str(tmp_path / "x.npz"), num=2, steps="2")
    tracked, made = (load(folder, which)[2] for folder, which in ((tmp_path, "short"), (tmp_path / "posthoc" / "0.05", "ema")))
    np.testing.assert_allclose(made["model"]["enc_0_conv"]["weight"], tracked["model"]["enc_0_conv"]["weight"], atol=1e-5)
    assert open_run(tmp_path / "posthoc" / "0.05").classes == tuple("0123456789")
    first = {"decoder": {"kernel": np.arange(3, dtype=np.float32)}}
    save_start(tmp_path / "first_stage", plain(page("digits_vae")), first)
    ask("posthoc_ema", tmp_path, std="0.15")
    assert open_run(tmp_path / "posthoc" / "0.05").model.first is None
    np.testing.assert_array_equal(open_run(tmp_path / "posthoc" / "0.15").model.first["decoder"]["kernel"], [0, 1, 2])
    with pytest.raises(ConfigError, match="holds an average already"):
        ask("posthoc_ema", tmp_path, std="0.05")
    other = dict(std="0.1", label=3)
    for options, says in (({}, "needs --std"), (dict(std="a"), "list of numbers"), (other, "--label belongs to")):
        with pytest.raises(ConfigError, match=says):
            ask("posthoc_ema", tmp_path, **options)


def test_a_run_without_snapshots_has_no_averages_to_make(tiny_run):
    with pytest.raises(ConfigError, match="train with config.snapshots"):
        ask("posthoc_ema", tiny_run, std="0.1")


@pytest.mark.parametrize(
    ("std", "says"),
    [
        ("0.1,0.1", "has 0.1 twice"),
        ("0.10,0.1", "has 0.1 twice"),
        ("0.1_0", "a length is a number"),
        ("٠.١", "a length is a number"),
        ("0.1,,0.2", "a length is a number"),
        ("nan", "not finite"),
        ("1e400", "not finite"),
    ],
)
def test_lengths_are_numbers_and_each_is_named_once(tiny_run, std, says):
    with pytest.raises(ConfigError, match=says):
        ask("posthoc_ema", tiny_run, std=std)


def test_blanks_between_lengths_are_in_no_name():
    assert built(posthoc_ema.Options, {"std": "0.05, 0.10"}).names == ["0.05", "0.10"]


def test_an_out_that_cannot_be_written_is_refused_before_a_snapshot_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(posthoc_ema, "reconstruct", lambda *_: pytest.fail("the averages were made"))
    with pytest.raises(ConfigError, match="cannot be written"):
        ask("posthoc_ema", tmp_path, std="0.1", out=str(tmp_path / "file"))


def test_nothing_is_left_where_there_are_no_snapshots(tmp_path):
    with pytest.raises(ConfigError, match="train with config.snapshots"):
        ask("posthoc_ema", tmp_path, std="0.1")
    assert not list(tmp_path.iterdir())
