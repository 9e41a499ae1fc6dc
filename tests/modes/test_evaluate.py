"""Modes `evaluate` and `reference` in a network's features: against what, restarted, on other devices, and what they refuse."""
import dataclasses
import json
import pickle
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from pages import ROOT, page

from diffusion_jax.build import ConfigError
from diffusion_jax.data import image, latents
from diffusion_jax.data.digits import Digits
from diffusion_jax.metrics.extract import Network
from diffusion_jax.models.vae import KL
from diffusion_jax.modes import evaluate, measure, prompts, reference, sample, train
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.train.state import plain, task_of

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(64, 6)).astype(np.float32)
QUICK = dict(features="stub", num=40, steps=2, batch=16)


def see(params, images):
    flat = images.reshape(len(images), -1) / 255
    return {"features": flat @ params, "spatial": flat[:, 10:13], "logits": jnp.tanh(flat @ params)}


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    """A cheap network in place of the published ones."""
    def network_of(options):
        assert options.pop("features") == "stub"
        return Network("stub", see, WEIGHTS)

    monkeypatch.setattr(evaluate, "network_of", network_of)
    monkeypatch.setattr(reference, "network_of", network_of)


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the tiny run, to write reports to."""
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Folders of classes, and an .npz, of the first digits."""
    root, source = tmp_path_factory.mktemp("digits"), Digits("test")
    records = [source[i] for i in range(60)]
    for i, record in enumerate(records):
        image.save_png(root / "folder" / str(record["label"]) / f"{i:03d}.png", record["image"])
    np.savez(root / "digits.npz", arr_0=np.stack([record["image"] for record in records]),
             arr_1=np.array([record["label"] for record in records]))
    return root


def test_samples_are_measured_against_the_training_data(run, cli):
    done = cli("--workdir", run, "--mode", "evaluate", *(f"--{name}={value}" for name, value in QUICK.items()))
    assert done.code == 0 and "FID[stub]" in done.out and "sFID[stub]" in done.out and "report.html" in done.out
    report = json.loads((run / "report.json").read_text())
    assert report["reference"] == "train data" and len(report["classes"]) == 10 and "warnings" not in report
    found = (run / "report.html").read_text()
    for said in ("FID[stub]", "Samples", "Nearest images of the reference", "Classes", "Training", "data:image/png;base64"):
        assert said in found
    assert len(list((run / measure.FOLDER).iterdir())) == 1                   # the reference, for the next time
    again = evaluate.measured(str(run), QUICK | dict(batch=20, steps="2"))       # one device in place of eight
    for name, value in report.items():
        assert again[name] == (pytest.approx(value, rel=1e-6, abs=1e-6) if isinstance(value, float) else value), name


def test_a_killed_evaluation_goes_on(run, monkeypatch):
    straight = evaluate.measured(str(run), QUICK)
    made = []

    class Killed(measure.Samples):
        def batches(self, starts, size):
            for first, batch in zip(starts, super().batches(starts, size), strict=True):
                made.append(first)
                if len(made) == 3:
                    raise KeyboardInterrupt
                yield batch

    monkeypatch.setattr(evaluate, "Samples", Killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate.measured(str(run), QUICK)
    assert evaluate.measured(str(run), QUICK) == straight
    assert made == [0, 16, 32, 16, 32]                                         # the second was not yet written


def test_given_images_are_measured_against_a_folder_a_batch_or_statistics(digits, tmp_path):
    reference.run(None, str(tmp_path), dict(features="stub", images=str(digits / "folder"), batch=16))
    folder, npz, statistics = (
        evaluate.measured(str(tmp_path), dict(features="stub", images=str(digits / "digits.npz"), reference=str(path), batch=16))
        for path in (digits / "folder", digits / "digits.npz", tmp_path / "reference.npz"))
    for report in (folder, npz, statistics):
        assert abs(report["FID[stub]"]) < 1e-6 and abs(report["sFID[stub]"]) < 1e-6 and report["samples"] == 60
    assert folder["coverage[stub]"] == npz["coverage[stub]"] == 1 and "coverage[stub]" not in statistics
    shifted = evaluate.measured(str(tmp_path), dict(features="stub", images=str(digits / "digits.npz"), batch=16, blur=1.0,
                                                    reference=str(digits / "folder")))
    assert shifted["blur"] == 1 and abs(shifted["FID[stub]"]) < 1e-6          # both sides are blurred


def test_a_file_with_statistics_and_images_gives_both(digits, tmp_path):
    """As ADM's batches of references: the published moments count, neighbours come from its images."""
    with np.load(digits / "digits.npz") as arrays:
        np.savez(tmp_path / "VIRTUAL.npz", arr_0=arrays["arr_0"], mu=np.ones(6), sigma=np.eye(6))
    found = evaluate.measured(str(tmp_path), dict(features="stub", images=str(digits / "digits.npz"), batch=16,
                                                  reference=str(tmp_path / "VIRTUAL.npz")))
    assert found["FID[stub]"] > 1 and found["recall[stub]"] == 1


def test_edm2s_statistics_are_read_by_network(tmp_path):
    content = {"fid": {"mu": np.ones(6), "sigma": np.eye(6)}, "fd_dinov2": {"mu": np.zeros(4), "sigma": np.eye(4)}}
    path = tmp_path / "img512.pkl"
    path.write_bytes(pickle.dumps(content))
    for label, size in (("inception, tensorflow", 6), ("dinov2", 4)):
        assert measure.statistics_in(path, Network(label, see, WEIGHTS))["features"].cov.shape == (size, size)
    with pytest.raises(ConfigError, match="holds no statistics of stub"):
        measure.statistics_in(path, Network("stub", see, WEIGHTS))


class Evil:
    def __reduce__(self):
        return print, ("code was run",)


def test_what_cannot_be_measured_is_refused_in_one_line(digits, tmp_path, tiny_run, capsys):
    def refused(says, **options):
        with pytest.raises(ConfigError, match=says) as error:
            evaluate.measured(str(tmp_path), dict(features="stub", batch=16) | options)
        assert "\n" not in str(error.value)

    folder, given = str(digits / "folder"), dict(images=str(digits / "digits.npz"))
    refused("need a --reference", images=folder)
    refused("no such file or folder", images=folder, reference=str(tmp_path / "missing"))
    refused("--guidance is for samples", images=folder, reference=folder, guidance=2.0)
    (tmp_path / "bad").mkdir()
    for name, content, says in (
        ("bad/0.png", b"\x89PNG cut", "0.png: cannot read this image"), ("odd.npz", b"no zip", "is not an .npz"),
        ("evil.pkl", pickle.dumps({"fid": Evil()}), "refused: it names builtins.print, which is code"),
        ("cut.pkl", pickle.dumps({"fid": np.ones(9)})[:50], "refused: pickle data was truncated"),
    ):
        (tmp_path / name).write_bytes(content)
        refused(says, **given, reference=str(tmp_path / name.partition("/")[0]))
    assert "code was run" not in capsys.readouterr().out
    np.savez(tmp_path / "nothing.npz", x=np.ones(3))
    np.savez(tmp_path / "nan.npz", mu=np.full(6, np.nan), sigma=np.eye(6))
    np.savez(tmp_path / "other.npz", mu=np.ones(6), sigma=np.eye(6), network="inception, clean_fid")
    np.savez(tmp_path / "size.npz", mu=np.ones(2048), sigma=np.eye(2048))
    np.savez(tmp_path / "floats.npz", arr_0=np.full((3, 8, 8, 1), np.nan))
    refused("holds no images arr_0 nor statistics", **given, reference=str(tmp_path / "nothing.npz"))
    refused("no statistics of features", **given, reference=str(tmp_path / "nan.npz"))
    refused("made with inception, clean_fid, not with stub", **given, reference=str(tmp_path / "other.npz"))
    refused("made with another network", **given, reference=str(tmp_path / "size.npz"))
    refused("'arr_0', uint8", images=str(tmp_path / "floats.npz"), reference=folder)
    image.save_png(tmp_path / "mixed" / "0.png", np.zeros((8, 8, 1), np.uint8))
    image.save_png(tmp_path / "mixed" / "1.png", np.zeros((8, 9, 1), np.uint8))
    refused("image 1 is 8x9x1, image 0 is 8x8x1", **given, reference=str(tmp_path / "mixed"))
    image.save_png(tmp_path / "few" / "0" / "0.png", np.zeros((8, 8, 1), np.uint8))
    refused("class '1' is in one of", images=str(tmp_path / "few"), reference=folder)
    with pytest.raises(ConfigError, match="needs both --rerank"):
        evaluate.measured(str(tiny_run), QUICK | dict(candidates=2))


def test_a_reference_needs_images_and_a_place(tmp_path, digits):
    for options, says in ((dict(), "needs images"), (dict(images=str(digits / "folder"), out="x.png"), "end it in .npz"),
                          (dict(images=str(digits / "folder"), seed=1), "takes no --seed")):
        with pytest.raises(ConfigError, match=says):
            reference.run(None, str(tmp_path), dict(features="stub") | options)
    config = page("digits")
    reference.run(config, str(tmp_path), dict(features="stub"))
    with np.load(tmp_path / "reference.npz") as arrays:
        assert arrays["mu"].shape == (6,) and arrays["mu_s"].shape == (3,)
        assert arrays["images"] == 1500 and arrays["network"] == "stub"


def test_a_run_measures_itself_while_it_trains(tmp_path):
    config = page("digits", evaluate=dict(num=0, guidance=1.0, features="stub", every=2, samples=20))
    train.run(config, str(tmp_path), {})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "FID[stub]" in line] == [2, 4]
    assert (tmp_path / "checkpoints").exists() and not (ROOT / measure.FOLDER).exists()


@pytest.mark.parametrize(("change", "says"), [
    (dict(num=0, every=2, samples=5), "5 samples do not cover the 10 classes"),
    (dict(num=20, features="stub", reference="missing.npz"), "missing.npz: no such file"),
])
def test_what_a_run_cannot_measure_is_said_before_it_starts(tmp_path, change, says):
    config = page("digits", evaluate=dict(guidance=1.0) | change)
    with pytest.raises(ConfigError, match=says):
        train.run(config, str(tmp_path / "run"), {})
    assert not (tmp_path / "run").exists()
    dvae = page("digits_dvae", evaluate=dict(num=20))
    with pytest.raises(ConfigError, match="no metric of a DiscreteVAE: set evaluate.num"):
        train.run(dvae, str(tmp_path / "run"), {})


def model_of(name, **changes):
    stored = plain(page(name))
    task = dataclasses.replace(task_of(stored), **changes)
    return evaluate.Model(stored, task, {}, "run", {})


VAE = Autoencoder(model=KL(latent=1, width=8, mults=(1,), depth=1, groups=4), shape=(8, 8, 1))


@pytest.mark.parametrize(("name", "changes", "options", "says"), [
    ("digits_dvae", {}, {}, "no metric of a DiscreteVAE: use --mode likelihood"),
    ("digits_glide", {}, {"metric": "bpd"}, "this model makes images under tokens"),
    ("digits_adm", {"first_stage": VAE}, {"metric": "bpd"}, "this model makes latents"),
    ("digits", {}, {"classifier_scale": 2.0}, "needs a --classifier"),
])
def test_models_that_a_metric_does_not_know(name, changes, options, says):
    with pytest.raises(ConfigError, match=says):
        evaluate.of_model(model_of(name, **changes), options)


def test_a_judge_of_other_images_is_refused_before_any_are_made(monkeypatch):
    judge = dataclasses.replace(model_of("digits_classifier").task, shape=(16, 16, 1))
    monkeypatch.setattr(prompts, "load", lambda folder: ({}, judge, {}))
    with pytest.raises(ConfigError, match="judges images of .16, 16, 1., this model makes .8, 8, 1."):
        prompts.judge_of("judge", model_of("digits_dvae").stored)


def test_latents_are_no_pictures_to_compare_with(tmp_path):
    pytest.importorskip("array_record")
    with latents.Writer(tmp_path, "train") as writer:
        writer.write(np.zeros((1, 2, 8, 8, 1)), {"label": 0})
    (tmp_path / latents.ABOUT).write_text(json.dumps({"names": None, "std": [1.0], "mean": [0.0]}))
    model = model_of("digits")
    model.stored["data"] = {"train": dict(name="diffusion_jax.data.latents:Latents", path=str(tmp_path)),
                            "decode": dict(name="diffusion_jax.data.latents:Draw", path=str(tmp_path))}
    with pytest.raises(ConfigError, match="the data are latents"):
        evaluate.of_model(model, {"num": 20})


@pytest.mark.slow
def test_the_best_of_several_candidates_are_surer(tiny_run, tmp_path):
    train.run(page("digits_classifier"), str(tmp_path / "judge"), {})
    judge = sample.guide_of(str(tmp_path / "judge"))
    raw = {"label": np.arange(20, dtype=np.int32) % 10}
    model = sample.stage_of(str(tiny_run), "ema", None, dict(steps=2))
    samples = measure.Samples(model.task, model.params, model.recipe, raw, 20, 0)

    def sureness(images):
        (batch,) = images.batches([0], 20)
        return measure._sureness(judge.task, judge.params, image.to_unit(batch["image"]), batch["label"]), batch["label"]

    alone, of_one, of_four = (sureness(images) for images in (
        samples, measure.chosen(samples, str(tmp_path / "judge"), 1), measure.chosen(samples, str(tmp_path / "judge"), 4)))
    np.testing.assert_allclose(alone[0], of_one[0], rtol=1e-6)
    assert np.mean(of_four[0]) > np.mean(alone[0])
    np.testing.assert_array_equal(of_four[1], raw["label"])
