"""Images against a reference: samples, folders, batches, and what does not go together."""
import numpy as np
import pytest
from pages import measuring

from diffusion_jax.build import ConfigError
from diffusion_jax.data.pictures import save_png
from diffusion_jax.evaluation import compare, features, metrics


def test_samples_are_measured_against_the_training_data(stub, fresh):
    run = fresh("digits")
    quick = dict(features="stub", num=40)
    measured = metrics.measured(run, measuring(batch=16, changes={"steps": 2}, **quick))
    figures = measured.figures
    assert figures["reference"] == "train data" and len(figures["classes"]) == 10 and "warnings" not in figures
    assert measured.gallery.nearest.shape == (8, 4, 8, 8, 1) and measured.gallery.samples.shape == (16, 8, 8, 1)
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
    save_png(tmp_path / "few" / "0" / "0.png", np.zeros((8, 8, 1), np.uint8))
    refused("class '1' is in one of", images=str(tmp_path / "few"), reference=folder)
