"""Mode `likelihood`: figures of both stages of DALL-E, of which weights they are, and data that must be there."""
import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from pages import ask, page, without_data
from safetensors.numpy import save_file

from diffusion_jax.build import ConfigError
from diffusion_jax.evaluation.likelihood import Likelihood
from diffusion_jax.modes import likelihood
from diffusion_jax.pipelines import lora
from diffusion_jax.runs.folder import open_run, save_start


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
    monkeypatch.setattr(likelihood, "opened", lambda *_: model)
    with pytest.raises(ConfigError, match="without data: give a --config"):
        ask("likelihood", tmp_path)


def test_a_first_stage_without_data_is_measured_on_those_of_a_page(tmp_path, monkeypatch):
    """Images of the digits, 8x8: all that is seen of the network here is what it is given."""
    model = without_data("digits_vae", tmp_path)
    monkeypatch.setattr(likelihood, "opened", lambda *_: model)
    given = []
    monkeypatch.setattr(likelihood.likelihood, "measured", lambda model, batches: given.extend(batches) or Likelihood({"sum": 1}))
    ask("likelihood", tmp_path, num=4, config=page("digits"))
    assert given[0]["image"].shape == (4, 8, 8, 1)
    report = json.loads((tmp_path / "likelihood.json").read_text())
    assert report == {"data": "diffusion_jax.data.digits:Digits", "images": 4, "sum": 1}


@pytest.mark.parametrize(("changes", "says"), [
    ({"test": None}, "needs data.test"), ({"decode": {"channels": 3}}, r"images of \(8, 8, 1\), data.decode gives \(8, 8, 3\)")])
def test_pages_that_a_first_stage_cannot_be_measured_on(tmp_path, monkeypatch, changes, says):
    model = without_data("digits_vae", tmp_path)
    monkeypatch.setattr(likelihood, "opened", lambda *_: model)
    config = page("digits").to_dict()
    for part, change in changes.items():
        if change is None:
            del config["data"][part]
        else:
            config["data"][part] |= change
    with pytest.raises(ConfigError, match=says):
        ask("likelihood", tmp_path, config=config)


def factors(kernel, path):
    """Factors of a kernel [..., inputs, outputs], written as the LoRA of its path."""
    rng = np.random.default_rng(0)
    *window, inputs, outputs = kernel.shape
    down, up = (rng.normal(size=shape).astype(np.float32) for shape in ((*window, inputs, 2), (2, outputs)))
    return down @ up, {f"{path}.down": down, f"{path}.up": up, f"{path}.alpha": np.asarray(2, np.float32)}


def test_figures_with_a_lora_are_of_the_changed_weights_and_kept_apart(tmp_path, monkeypatch):
    run = without_data("digits_vae", tmp_path, data=page("digits_vae").to_dict()["data"])
    run = run._replace(model=run.model.replace(params={"w": {"kernel": np.ones((3, 2), np.float32)}}))
    monkeypatch.setattr(lora, "open_run", lambda *_: run)
    monkeypatch.setattr(likelihood.likelihood, "measured", lambda model, _: Likelihood(
        {"sum": float(model.params["w"]["kernel"].sum())}))
    delta, arrays = factors(np.ones((3, 2)), "w/kernel")
    save_file(arrays, tmp_path / "mine.safetensors")
    ask("likelihood", tmp_path, num=4)
    assert json.loads((tmp_path / "likelihood.json").read_text()) == {"images": 4, "sum": 6}
    ask("likelihood", tmp_path, num=4, lora=(f"{tmp_path}/mine.safetensors=0.5",))
    report = json.loads((tmp_path / "likelihood.json").read_text())
    assert report["lora"] == "mine=0.5" and report["images"] == 4
    np.testing.assert_allclose(report["sum"], 6 + 0.5 * delta.sum(), rtol=1e-5)
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == [
        "likelihood-step0-weightsparams-num=4-lora=mine=0.5.json", "likelihood-step0-weightsparams-num=4.json"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "path"), [
    ("digits_dalle", "model/blocks_0/fc1/kernel"), ("digits_dvae", "model/decoder/group_1_block_1/skip/kernel")])
def test_a_lora_measures_as_weights_that_it_was_added_to(token_runs, cli, tmp_path, name, path):
    run = open_run(token_runs / name)
    flat = flatten_dict(run.model.params, sep="/")
    delta, arrays = factors(flat[path], path)
    save_file(arrays, tmp_path / "x.safetensors")
    whole = unflatten_dict({**flat, path: flat[path] + 0.3 * delta}, sep="/")
    save_start(tmp_path / "merged", run.config, jax.tree.map(np.asarray, whole))
    if name == "digits_dalle":
        shutil.copytree(token_runs / name / "first_stage", tmp_path / "merged" / "first_stage")
    reports = []
    for folder, flags in ((tmp_path / "merged", ()), (token_runs / name, ("--lora", tmp_path / "x.safetensors=0.3")),
                          (token_runs / name, ())):
        done = cli("--workdir", folder, "--mode", "likelihood", "--num", 20, *flags)
        assert done.code == 0, done.err
        reports.append(json.loads((folder / "likelihood.json").read_text()))
    assert reports[1].pop("lora") == "x=0.3"
    merged, with_lora, without = ([value for value in report.values() if isinstance(value, float)] for report in reports)
    np.testing.assert_allclose(with_lora, merged, rtol=1e-4)
    assert not np.allclose(without, merged, rtol=1e-3)
