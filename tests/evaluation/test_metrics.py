"""The table of metrics: which model has which, what each of them looks at, and the figures of samples and held-out images."""
import dataclasses
import json

import numpy as np
import pytest
from pages import measuring, page

from diffusion_jax.build import ConfigError
from diffusion_jax.data import latents
from diffusion_jax.evaluation import metrics
from diffusion_jax.evaluation.report import Gallery, Measured
from diffusion_jax.models.vae import KL
from diffusion_jax.runs.folder import Model, Run
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.train.state import plain, task_of

VAE = Autoencoder(model=KL(latent=1, width=8, mults=(1,), depth=1, groups=4), shape=(8, 8, 1))


def empty(name, arg="tiny", **changes):
    """A run without weights: what is refused before they are needed."""
    config = plain(page(name, arg))
    task = dataclasses.replace(task_of(config), **changes)
    return Run("run", 0, "params", config, Model(params={}, first=None, task=task))


@pytest.mark.parametrize(("name", "names"), [
    ("digits", ("pixels", "features", "bpd", "clip")), ("digits_glide", ("pixels", "features", "bpd", "clip")),
    ("digits_classifier", ("accuracy",)), ("digits_clip", ("retrieval", "zero_shot", "tsne")),
    ("digits_dalle", ("clip",)), ("digits_vae", ()), ("digits_dvae", ()),
])
def test_every_kind_has_its_metrics(name, names):
    assert metrics.metrics_of(task_of(plain(page(name)))) == names


@pytest.mark.parametrize(("name", "changes", "options", "says"), [
    ("digits_dvae", {}, {}, "no metric of a discrete VAE: use --mode likelihood"),
    ("digits_glide", {}, {"metric": "bpd"}, "this model makes images under tokens"),
    ("digits_adm", {"first_stage": VAE}, {"metric": "bpd"}, "this model makes latents"),
    ("digits", {}, {"changes": {"classifier_scale": 2.0}}, "needs a --classifier"),
    ("digits", {}, {"metric": "pixel"}, "metric of a diffusion model 'pixel': did you mean 'pixels'"),
    ("digits_clip", {}, {"metric": "bpd"}, "metric of a CLIP 'bpd'"),
])
def test_models_that_a_metric_does_not_know(name, changes, options, says):
    with pytest.raises(ConfigError, match=says):
        metrics.measured(empty(name, **changes), measuring(**options))


@pytest.mark.parametrize(("name", "options", "says"), [
    ("digits", dict(metric="bpd", changes={"guidance": 2.0}), "--guidance is for samples: this metric makes none"),
    ("digits", dict(metric="bpd", candidates=2), "--candidates is for samples"),
    ("digits", dict(metric="bpd", features="x"), "--features is for metric features or clip, not for bpd"),
    ("digits", dict(reference="x"), "--reference is for metric features, not for pixels"),
    ("digits", dict(template="x"), "--template is for metric zero_shot"),
    ("digits", dict(prior="text"), "--prior is for metric clip"),
    ("digits", dict(changes={"top_k": 3}), "unknown sampling option 'top_k'"),
    ("digits_classifier", dict(changes={"steps": 3}), "--steps is for samples"),
    ("digits_classifier", dict(changes={"top_k": 3}), "--top_k is nothing that metric accuracy looks at"),
    ("digits_clip", dict(upsampler=("x",)), "--upsampler is for samples"),
    ("digits_clip", dict(metric="retrieval", template="x"), "--template is for metric zero_shot, not for retrieval"),
])
def test_what_a_metric_does_not_look_at_is_refused(name, options, says):
    with pytest.raises(ConfigError, match=says):
        metrics.check(empty(name), measuring(**{"num": 20} | options))


@pytest.mark.slow
def test_held_out_images_are_measured_whatever_the_batch(fresh, judge):
    run = fresh("digits")
    for each, options, name in ((judge, {}, "accuracy at t = 0.0 of the noisiest"),
                                (run, dict(metric="bpd", changes={"steps": "10"}), "of them prior")):
        figures = [metrics.measured(each, measuring(num=25, batch=batch, **options)).figures for batch in (25, 10)]
        assert figures[0]["images"] == figures[1]["images"] == 25
        assert figures[0][name] == pytest.approx(figures[1][name], rel=1e-5)
    assert figures[0]["steps"] == 10 and figures[0]["bits/dim"] > 0


def test_latents_are_no_pictures_to_compare_with(tmp_path):
    pytest.importorskip("array_record")
    with latents.Writer(tmp_path, "train") as writer:
        writer.write(np.zeros((1, 2, 8, 8, 1)), {"label": 0})
    (tmp_path / latents.ABOUT).write_text(json.dumps({"names": None, "std": [1.0], "mean": [0.0]}))
    run = empty("digits")
    run.config["data"] = {"train": dict(name="diffusion_jax.data.latents:Latents", path=str(tmp_path)),
                          "decode": dict(name="diffusion_jax.data.latents:Draw", path=str(tmp_path))}
    with pytest.raises(ConfigError, match="the data are latents"):
        metrics.measured(run, measuring(num=20))


@pytest.mark.parametrize(("name", "section", "says"), [
    ("digits", dict(num=20), ""), ("digits_classifier", dict(num=20), ""), ("digits_dvae", dict(num=0), ""),
    ("digits_dvae", dict(num=20), "no metric of a discrete VAE: set evaluate.num"),
    ("digits_dalle", dict(num=20), "a transformer over .* are judged by a CLIP: give config.evaluate.features"),
    ("digits", dict(num=5), "5 samples do not cover the 10 classes"),
    ("digits", dict(num=20, features="stub", reference="missing.npz"), "missing.npz: no such file"),
    ("digits", dict(num=20, features="nothing=x"), "unknown feature network"),
])
def test_what_a_run_cannot_measure_is_said_before_it_starts(stub, name, section, says):
    config = plain(page(name, evaluate={"guidance": 1.0, **section}))
    numbers = [section["num"]] if section["num"] else []
    if not says:
        return metrics.ready(task_of(config), config, numbers, 10)
    with pytest.raises(ConfigError, match=says):
        metrics.ready(task_of(config), config, numbers, 10)


def test_pictures_without_classes_have_a_novelty():
    config = plain(page("digits"))
    task = task_of(config | {"task": config["task"] | {"cond": {"name": "diffusion_jax.models.cond:Nothing"}, "drop": {}}})
    metrics.ready(task, config, [5], 10)
    rng = np.random.default_rng(0)
    samples, train, test = (rng.integers(0, 256, (count, 8, 8, 1), np.uint8) for count in (9, 20, 10))
    assert metrics.of_pixels(samples, None, (train, None), (test, None)).keys() == {"novelty[pixels]"}
    with pytest.raises(ConfigError, match="the data has none: give more pictures"):
        metrics.check_pictures({key: config["data"][key] for key in ("train", "decode")})


def test_figures_of_copies_come_with_those_of_the_training_data(monkeypatch):
    """Not where only a reference is named: the data of a run that came from elsewhere need not be there."""
    samples = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    sampled = metrics.METRICS["features"]._replace(measure=lambda run, options: Measured({}, Gallery(samples)))
    monkeypatch.setitem(metrics.METRICS, "features", sampled)
    run, of_data, of_reference = empty("digits"), measuring(features="stub"), measuring(features="stub", reference="r.npz")
    figures = [metrics.measured(run, options, training).figures
               for options, training in ((of_data, False), (of_reference, True), (of_reference, False))]
    assert [bool(each) for each in figures] == [True, True, False]
    assert figures[0].keys() == {"closer[pixels]", "copies[pixels]"}

