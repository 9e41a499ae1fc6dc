"""Mode `likelihood`: figures of both stages of DALL-E, and data that must be there."""
import json

import numpy as np
import pytest
from pages import ask, without_data

from diffusion_jax.build import ConfigError
from diffusion_jax.modes import likelihood


@pytest.mark.slow
def test_likelihood_of_both_stages(token_runs, cli, tiny_run):
    for name, figure in (("digits_dvae", "perplexity"), ("digits_dalle", "image (bits per token)")):
        done = cli("--workdir", token_runs / name, "--mode", "likelihood", "--num", 40)
        assert done.code == 0 and figure in done.out, done.err
        report = json.loads((token_runs / name / "likelihood.json").read_text())
        assert report["images"] == 40 and np.isfinite(report[figure])
    assert (token_runs / "digits_dvae" / "reconstructions.png").is_file()
    other = cli("--workdir", tiny_run, "--mode", "likelihood")
    assert other.code == 2 and "holds a diffusion model: give the folder of" in other.err


def test_likelihood_needs_data(tmp_path, monkeypatch):
    model = without_data("digits_vae", tmp_path)
    monkeypatch.setattr(likelihood, "open_run", lambda *_: model)
    with pytest.raises(ConfigError, match="without data: likelihood is of"):
        ask("likelihood", tmp_path)
