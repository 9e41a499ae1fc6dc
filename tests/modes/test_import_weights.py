"""import_weights: official files become folders that sample, and what is refused leaves nothing behind."""
import json
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest
from golden_case import load as load_case
from pages import ask, measuring, page, without_data
from safetensors.numpy import save_file

from diffusion_jax.build import ConfigError
from diffusion_jax.evaluation import features, metrics, samples
from diffusion_jax.metrics.extract import Network
from diffusion_jax.runs.folder import save_start
from diffusion_jax.train.checkpoint import load
from diffusion_jax.train.state import task_of

GOLDENS = Path(__file__).parent.parent / "goldens"


@pytest.mark.slow
def test_an_adm_and_its_classifier_are_imported_and_sampled_together(cli, tmp_path):
    case = load_case(GOLDENS / "adm" / "adm_classifier_sample_p6.json")
    for part in ("unet", "classifier"):
        weights = {key.removeprefix(f"{part}/"): value for key, value in case.weights.items() if key.startswith(f"{part}/")}
        np.savez(tmp_path / f"{part}.npz", **weights)
        (tmp_path / f"{part}.json").write_text(json.dumps(case.config[part]))
        done = cli("--mode", "import_weights", "--system", "adm", "--source", tmp_path / f"{part}.npz", "--official",
                   tmp_path / f"{part}.json", "--workdir", tmp_path / part)
        assert done.code == 0, done.err
    images = {}
    for scale in (1, 1, 3):
        out = tmp_path / f"{scale}.npz"
        done = cli("--workdir", tmp_path / "unet", "--mode", "sample", "--num", 4, "--steps", 3, "--classifier",
                   tmp_path / "classifier", "--classifier_scale", scale, "--out", out)
        assert done.code == 0, done.err
        with np.load(out) as found:
            images.setdefault(scale, []).append(found["arr_0"])
    np.testing.assert_array_equal(*images[1])
    assert (images[1][0] != images[3][0]).any()


def test_a_dit_is_imported_and_sampled_from_the_command_line(cli, tmp_path):
    case = load_case(GOLDENS / "dit" / "dit_psample_8_fixedlarge_clip.json")
    source, options, run = tmp_path / "dit.safetensors", tmp_path / "options.json", tmp_path / "run"
    save_file({key: np.ascontiguousarray(value) for key, value in case.weights.items()}, source)
    options.write_text(json.dumps(case.config["model"]))
    done = cli("--mode", "import_weights", "--system", "dit", "--source", source, "--official", options, "--workdir", run)
    assert done.code == 0 and "parameters of" in done.out, done.err
    again = cli("--mode", "import_weights", "--system", "dit", "--source", source, "--official", options, "--workdir", run)
    assert again.code == 2 and "choose another workdir" in again.err
    _, task, params = load(run)
    assert task.variance == ("learned_range" if case.config["model"]["learn_sigma"] else "fixed_large")
    table = case.weights["y_embedder.embedding_table.weight"]
    np.testing.assert_array_equal(params["cond"]["table"], table)
    out = tmp_path / "x.npz"
    done = cli("--workdir", run, "--mode", "sample", "--num", 2, "--steps", 2, "--guidance", 1, "--out", out)
    assert done.code == 0, done.err
    with np.load(out) as found:
        assert found["arr_0"].shape == (2, *task.shape)
    for options, says in (((), "give --features and a --reference"), (("--metric", "bpd"), "of a run's own held-out images"),
                          (("--metric", "clip", "--features", run), "is no CLIP: give")):
        done = cli("--workdir", run, "--mode", "evaluate", *options)
        assert done.code == 2 and says in done.err and done.err.count("\n") == 1, done.err


def test_imported_weights_are_measured_against_given_images(tmp_path, monkeypatch):
    """In the features of a stub, with samples of a stub: what is tested is what a page without data leaves out."""
    def batches(samples, starts, size):
        for first in starts:
            label = samples.raw["label"][first : first + size]
            yield {"image": np.full((len(label), 8, 8, 1), first, np.uint8), "label": label}

    model = without_data("digits", tmp_path, sample=dict(sampler="ddim", steps=2))
    np.savez(tmp_path / "real.npz", arr_0=np.random.default_rng(0).integers(0, 255, (20, 8, 8, 1), np.uint8))
    see = Network("stub", lambda params, x: {"features": x.reshape(len(x), -1)[:, :6] / 255.0}, np.zeros(1))
    monkeypatch.setattr(features, "network_of", lambda *names: see)
    monkeypatch.setattr(features, "named", lambda *names: ("", str(tmp_path)))
    monkeypatch.setattr(samples.Samples, "batches", batches)
    options = {"features": "stub", "reference": str(tmp_path / "real.npz"), "num": 12, "batch": 4}
    report = metrics.measured(model, measuring(**options)).figures
    assert report["samples"] == 12 and report["FID[stub]"] > 0 and report["reference"].endswith("real.npz")
    for left_out, says in (("num", "give --num"), ("reference", "need a --reference")):
        with pytest.raises(ConfigError, match=says):
            metrics.measured(model, measuring(**{name: value for name, value in options.items() if name != left_out}))


@pytest.mark.parametrize(("name", "options", "says"), [
    ("digits", {"metric": "bpd"}, "this metric is of"), ("digits", {}, "give --features and a --reference"),
    ("digits_clip", {}, "metric retrieval is of"), ("digits_classifier", {}, "this metric is of"),
    ("digits_glide", {"features": "stub", "num": 2}, "to make its conditions of"),
])
def test_what_is_measured_on_own_data_needs_some(name, options, says, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "network_of", lambda *names: Network("stub", lambda params, x: {}, np.zeros(1)))
    monkeypatch.setattr(features, "named", lambda *names: ("", str(tmp_path)))
    model = without_data(name, tmp_path, sample=dict(sampler="ddim", steps=2))
    if "num" in options:                                                       # all that is asked for, but for data
        np.savez(tmp_path / "real.npz", arr_0=np.zeros((4, 8, 8, 1), np.uint8))
        options = options | {"reference": str(tmp_path / "real.npz")}
    with pytest.raises(ConfigError, match=f"without data.*{says}"):
        metrics.measured(model, measuring(**options))


@pytest.mark.slow
def test_a_dit_joined_to_a_first_stage_makes_images(cli, tmp_path):
    case = load_case(GOLDENS / "dit" / "dit_psample_8_fixedlarge_clip.json")
    source, options, vae = tmp_path / "dit.npz", tmp_path / "options.json", tmp_path / "vae"
    np.savez(source, **case.weights)
    options.write_text(json.dumps(case.config["model"]))
    model = dict(name="diffusion_jax.models.vae:KL", latent=3, width=8, mults=(1, 2), depth=1, groups=4)
    task = dict(name="diffusion_jax.tasks.autoencoder:Autoencoder", shape=(16, 16, 3), scale=0.5)
    params = task_of({"task": task, "model": model}).init(jax.random.key(0), {"image": np.zeros((1, 16, 16, 3))})
    save_start(vae, {"task": task, "model": model}, params)
    command = ("--mode", "import_weights", "--system", "dit", "--source", source, "--official", options)
    done = cli(*command, "--first_stage", vae, "--workdir", tmp_path / "run")
    assert done.code == 0, done.err
    assert load(tmp_path / "run")[1].first_stage.scale == 0.18215
    out = tmp_path / "x.npz"
    done = cli("--workdir", tmp_path / "run", "--mode", "sample", "--num", 2, "--steps", 2, "--guidance", 1, "--out", out)
    assert done.code == 0, done.err
    with np.load(out) as found:
        assert found["arr_0"].shape == (2, 12, 12, 3)
    wrong = cli(*command, "--first_stage", tmp_path / "run", "--workdir", tmp_path / "other")
    assert wrong.code == 2 and "no autoencoder with latents of 3 channels" in wrong.err and not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_diffit_is_imported_and_sampled_as_published(cli, tmp_path):
    case = load_case(GOLDENS / "diffit" / "sample_ddpm10.json")
    source, run, out = tmp_path / "diffit.safetensors", tmp_path / "run", tmp_path / "x.npz"
    save_file({key: np.ascontiguousarray(value) for key, value in case.weights.items()}, source)
    done = cli("--mode", "import_weights", "--system", "diffit", "--source", source, "--workdir", run)
    assert done.code == 0 and "parameters of" in done.out, done.err
    config, _, params = load(run)
    assert (config["sample"]["guidance"], config["sample"]["schedule"]) == (4.4, "power_cosine,power=4")
    table = case.weights["blocks.1.attn.relative_position_bias_table"]
    np.testing.assert_array_equal(params["model"]["blocks"]["attn"]["table"][1], table)
    done = cli("--workdir", run, "--mode", "sample", "--num", 2, "--steps", 3, "--out", out)
    assert done.code == 0, done.err
    with np.load(out) as found:
        assert found["arr_0"].shape == (2, 8, 8, 4)


@pytest.mark.parametrize("kind", ["pickle", "wrong key", "no system", "unknown system", "no file"])
def test_what_is_refused_leaves_nothing(cli, tmp_path, kind):
    run, source = tmp_path / "run", tmp_path / "x.pt"
    given = ["--mode", "import_weights", "--workdir", run, "--source", source, "--system", "dit"]
    if kind == "pickle":
        pytest.importorskip("torch")
        source.write_bytes(pickle.dumps({"x": Path("/etc/passwd")}))
        says = "is refused"
    elif kind == "wrong key":
        given[5], says = tmp_path / "x.npz", "no state dict of a DiT"
        np.savez(given[5], weight=np.zeros(3))
    elif kind == "no system":
        given, says = given[:-2], "needs --system"
    elif kind == "unknown system":
        given[-1], says = "ditt", "did you mean 'dit'"
    else:
        says = "there is no file"
    done = cli(*given)
    assert done.code == 2 and says in done.err and done.err.count("\n") == 1
    assert not run.exists()


@pytest.mark.slow
def test_fine_tuning_starts_from_the_weights_of_a_folder(cli, tiny_run, tmp_path):
    """At another size of image: the positions of the trained grid are interpolated."""
    config = page("digits", steps=1, init=str(tiny_run))
    config.optim.lr = 0.0
    config.evaluate.num = 0
    config.model.grid = 4
    config.task.shape = (16, 16, 1)
    config.data.decode.size = 16
    ask("train", tmp_path / "tuned", config=config)
    before, after = (load(folder)[2] for folder in (tiny_run, tmp_path / "tuned"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), before, after)
    config.model.width = 48
    config.task.cond.width = 48
    with pytest.raises(ConfigError, match="the initial weights do not fit the model: cond/table is"):
        ask("train", tmp_path / "other", config=config)
