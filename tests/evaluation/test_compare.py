"""Images against a reference: samples, folders, batches, what does not go together, two at a time and what was killed."""
import dataclasses
import os
import threading

import numpy as np
import pytest
from pages import measuring

from diffusion_jax.build import ConfigError
from diffusion_jax.data.pictures import save_png
from diffusion_jax.evaluation import compare, features, metrics, samples
from diffusion_jax.metrics import figures as measures
from diffusion_jax.metrics.extract import Network


@pytest.mark.slow
def test_samples_are_measured_against_the_training_data(stub, fresh):
    run = fresh("digits")
    quick = dict(features="stub", num=40)
    measured = metrics.measured(run, measuring(batch=16, changes={"steps": 2}, **quick))
    figures = measured.figures
    assert figures["reference"] == "train data" and len(figures["classes"]) == 10 and "warnings" not in figures
    assert measured.gallery.nearest.shape == (8, 4, 8, 8, 1) and measured.gallery.samples.shape == (40, 8, 8, 1)
    assert len(list((features.Path(run.folder) / features.FOLDER).iterdir())) == 1       # the reference, for the next time
    again = metrics.measured(run, measuring(batch=20, changes={"steps": "2"}, **quick)).figures
    for name, value in figures.items():                                             # one device in place of eight
        assert again[name] == (pytest.approx(value, rel=1e-6, abs=1e-6) if isinstance(value, float) else value), name


def test_images_are_measured_against_a_folder_or_a_batch(stub, digits, tmp_path):
    def measured(reference, **options):
        whole = measuring(features="stub", images=str(digits / "digits.npz"), reference=str(reference), batch=16, **options)
        return compare.of_images(str(tmp_path), whole).figures

    for figures in (measured(digits / "folder"), measured(digits / "digits.npz")):
        assert abs(figures["FID[stub]"]) < 1e-6 and abs(figures["sFID[stub]"]) < 1e-6 and figures["samples"] == 60
        assert figures["coverage[stub]"] == 1
    smooth = measured(digits / "folder", blur=1.0)
    assert smooth["blur"] == 1 and abs(smooth["FID[stub]"]) < 1e-6                  # both sides are blurred


def test_a_file_with_statistics_and_images_gives_both(stub, digits, tmp_path):
    """As ADM's batches of references: the published moments count, neighbours come from its images."""
    with np.load(digits / "digits.npz") as arrays:
        np.savez(tmp_path / "VIRTUAL.npz", arr_0=arrays["arr_0"], mu=np.ones(6), sigma=np.eye(6))
    figures = compare.of_images(str(tmp_path), measuring(
        features="stub", batch=16, images=str(digits / "digits.npz"), reference=str(tmp_path / "VIRTUAL.npz"))).figures
    assert figures["FID[stub]"] > 1 and figures["recall[stub]"] == 1


def test_images_need_something_to_be_measured_against(refused, digits, tmp_path):
    folder = str(digits / "folder")
    refused("need a --reference", images=folder)
    refused("no such file or folder", images=folder, reference=str(tmp_path / "missing"))
    refused("--guidance is for samples: --images are measured as they are", images=folder, reference=folder,
            changes={"guidance": 2.0})
    refused("--seed is for samples", images=folder, reference=folder, seed=1)
    refused("are measured by --metric features", images=folder, reference=folder, metric="pixels")


def test_a_comparison_needs_images(stub, tmp_path):
    with pytest.raises(ConfigError, match="give --images"):
        compare.of_images(str(tmp_path), measuring(features="stub"))


def test_images_that_do_not_go_together(refused, digits, tmp_path):
    folder, batch = str(digits / "folder"), str(digits / "digits.npz")
    np.savez(tmp_path / "floats.npz", arr_0=np.full((3, 8, 8, 1), np.nan))
    refused("'arr_0', uint8", images=str(tmp_path / "floats.npz"), reference=folder)
    save_png(tmp_path / "mixed" / "0.png", np.zeros((8, 8, 1), np.uint8))
    save_png(tmp_path / "mixed" / "1.png", np.zeros((8, 9, 1), np.uint8))
    refused("image 1 is 8x9x1, image 0 is 8x8x1", images=batch, reference=str(tmp_path / "mixed"))
    for i in range(2):
        save_png(tmp_path / "few" / "0" / f"{i}.png", np.zeros((8, 8, 1), np.uint8))
    refused("class '1' is in one of", images=str(tmp_path / "few"), reference=folder)


# Before the work ------------------------------------------------------------------------------------------------------------


def statistics(path, size):
    np.savez(path, mu=np.zeros(size), sigma=np.eye(size))
    return str(path)


def one_class(path):
    np.savez(path, arr_0=np.zeros((4, 8, 8, 1), np.uint8), arr_1=np.full(4, 12))
    return str(path)


@pytest.mark.parametrize(("options", "says"), [
    (lambda root: dict(reference=statistics(root / "x.npz", 2048)), "made with another network"),
    (lambda root: dict(rerank="x"), "needs both --rerank"),
    (lambda root: dict(num=5), "5 samples do not cover the 10 classes"),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in (
        (lambda root: dict(reference=statistics(root / "x.npz", 7)), "have 7 numbers, those of stub have 6"),
        (lambda root: dict(reference=one_class(root / "x.npz")), "there is no sample of class '12'"),
        (lambda root: dict(reference=str(root / "missing")), "no such file or folder"),
        (lambda root: dict(changes={"sampler": "plms", "steps": "1"}), "at least 2 steps"),
        (lambda root: dict(features="inception"), "inception=FILE"))),
])
def test_what_cannot_be_compared_is_refused_before_a_sample_is_made(fresh, stub, monkeypatch, tmp_path, options, says):
    monkeypatch.setattr(samples.Samples, "batches", lambda *_: pytest.fail("samples are made"))
    with pytest.raises(ConfigError, match=says):
        leaves = {"features": "stub", "num": 20, "changes": {"steps": "2"}} | options(tmp_path)
        metrics.measured(fresh("digits"), measuring(**leaves))


def test_a_judge_of_another_size_is_refused_before_a_sample_is_made(fresh, judge, monkeypatch):
    monkeypatch.setattr(samples.Samples, "batches", lambda *_: pytest.fail("samples are made"))
    network = features.network_of(judge.folder)
    task = dataclasses.replace(judge.task, shape=(16, 16, 1))
    monkeypatch.setattr(features, "network_of", lambda *_: Network("judge", features.SeeClassifier(task), network.params))
    with pytest.raises(ConfigError, match="a noisy classifier of images of .16, 16, 1., these are .8, 8, 1."):
        metrics.measured(fresh("digits"), measuring(features=judge.folder, num=20))


def test_one_image_is_too_few(refused, digits, tmp_path):
    save_png(tmp_path / "one" / "0.png", np.zeros((8, 8, 1), np.uint8))
    refused("at least 2 images, there is 1", images=str(tmp_path / "one"), reference=str(digits / "folder"))


def test_a_folder_that_cannot_hold_features_is_refused_before_a_network_is_read(stub, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "network_of", lambda *_: pytest.fail("it is read"))
    (tmp_path / "evaluate").touch()
    images = str(digits / "digits.npz")
    with pytest.raises(ConfigError, match="evaluate/ cannot be written"):
        compare.of_images(str(tmp_path), measuring(features="stub", images=images, reference=images))


# Two at a time, and killed --------------------------------------------------------------------------------------------------


def test_two_evaluations_of_the_same_images_do_not_share_their_features(stub, digits, tmp_path, monkeypatch):
    """The second is refused while the first is at work, with its process; another one of other images is not."""
    options = dict(features="stub", images=str(digits / "digits.npz"), reference=str(digits / "folder"), batch=16)
    begun, on = threading.Event(), threading.Event()
    of_figures, results = measures.figures, []

    def wait(*arguments):
        begun.set()
        assert on.wait(60)
        return of_figures(*arguments)

    def first():
        results.append(compare.of_images(str(tmp_path), measuring(**options)).figures)

    monkeypatch.setattr(measures, "figures", wait)
    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert begun.wait(60)
        with pytest.raises(ConfigError, match=f"is being measured by process {os.getpid()} .*: wait for it"):
            compare.of_images(str(tmp_path), measuring(**options))
        monkeypatch.setattr(measures, "figures", of_figures)
        other = compare.of_images(str(tmp_path), measuring(**options | {"batch": 8})).figures
    finally:
        on.set()
        thread.join()
    assert results[0]["FID[stub]"] == pytest.approx(other["FID[stub]"], abs=1e-6)
    assert compare.of_images(str(tmp_path), measuring(**options)).figures == results[0]
    assert len(list((tmp_path / "evaluate").iterdir())) == 2                  # of the reference, in two sizes of batches


def test_features_of_a_killed_evaluation_are_not_those_of_other_images(stub, digits, tmp_path, monkeypatch):
    """The images are replaced before it goes on."""
    path = tmp_path / "x.npz"
    options = measuring(features="stub", images=str(path), reference=str(digits / "folder"), batch=16)
    images = np.load(digits / "digits.npz")["arr_0"]
    np.savez(path, arr_0=255 - images)
    of_figures = measures.figures
    monkeypatch.setattr(measures, "figures", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        compare.of_images(str(tmp_path / "work"), options)
    monkeypatch.setattr(measures, "figures", of_figures)
    before = path.stat()
    np.savez(path, arr_0=images)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert abs(compare.of_images(str(tmp_path / "work"), options).figures["FID[stub]"]) < 1e-6
