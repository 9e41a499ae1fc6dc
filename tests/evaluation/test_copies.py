"""The warning of a model that learns its pictures by heart: when it comes, what it shows, and where there is none."""
import json

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.digits import Digits
from diffusion_jax.evaluation import copies, report
from diffusion_jax.evaluation.report import Gallery, Measured

DIGITS = "diffusion_jax.data.digits:Digits"
DATA = dict(
    train=dict(name=DIGITS, split="train"), test=dict(name=DIGITS, split="test"),
    decode=dict(name="diffusion_jax.data.image:Decode", size=8, channels=1),
)
TRAIN, TEST = (np.stack([source[i]["image"] for i in range(len(source))]) for source in (Digits("train"), Digits("test")))
EVERY = TRAIN[::14]


def measured(samples, **figures):
    return Measured(figures, Gallery(samples))


def test_copies_are_told_and_their_pictures_shown():
    result = copies.added(measured(EVERY, FID=1.0, warnings=["another"]), DATA)
    assert result.figures["copies[pixels]"] == 1 and result.figures["closer[pixels]"] > 0.99 and result.figures["FID"] == 1
    another, warning = result.figures["warnings"]
    assert another == "another" and "closer[pixels] 1.00" in warning and "by heart" in warning and "\n" not in warning
    assert result.gallery.pairs.shape == (copies.PAIRS, 2, 8, 8, 1)
    np.testing.assert_array_equal(result.gallery.pairs[:, 0], result.gallery.pairs[:, 1])


def test_held_out_pictures_are_no_copies():
    result = copies.added(measured(TEST[:150]), DATA)
    assert "warnings" not in result.figures and result.figures["copies[pixels]"] < 0.02
    assert 0.4 < result.figures["closer[pixels]"] < 0.6


def test_the_pairs_that_are_nearest_come_first():
    samples = np.concatenate([TEST[:30], TRAIN[5:6]])
    pairs = copies.added(measured(samples), DATA).gallery.pairs
    np.testing.assert_array_equal(pairs[0], np.stack([TRAIN[5], TRAIN[5]]))
    flat = pairs.reshape(len(pairs), 2, -1).astype(float)
    nearest = np.sqrt(((flat[:, :1] - TRAIN.reshape(1, -1, 64)) ** 2).sum(-1)).min(1)
    np.testing.assert_allclose(np.sqrt(((flat[:, 0] - flat[:, 1]) ** 2).sum(-1)), nearest)


def test_mirror_images_count_where_training_makes_them():
    flip = DATA | {"decode": DATA["decode"] | {"flip": True}}
    assert copies.added(measured(EVERY[:, :, ::-1]), DATA).figures["copies[pixels]"] < 0.1
    assert copies.added(measured(EVERY[:, :, ::-1]), flip).figures["copies[pixels]"] == 1


@pytest.mark.parametrize("case", ["no samples", "one sample", "another size", "too many pictures", "two pictures", "no data"])
def test_what_cannot_be_compared_is_left_as_it_is(case, monkeypatch, tmp_path):
    samples, data = EVERY, DATA
    if case in ("no samples", "one sample"):
        samples = None if case == "no samples" else EVERY[:1]
    elif case == "another size":
        samples = np.zeros((4, 16, 16, 1), np.uint8)
    elif case == "too many pictures":
        monkeypatch.setattr(copies, "MOST", 100)
    elif case == "two pictures":
        for i in range(9):
            Image.fromarray(np.full((8, 8), i % 2 * 255, np.uint8)).save(tmp_path / f"{i}.png")
        data = DATA | {"train": dict(name="diffusion_jax.data.folder:Folder", path=str(tmp_path))}
    else:
        data = {"decode": DATA["decode"]}
    before = measured(samples, FID=1.0)
    assert copies.added(before, data) is before


@pytest.mark.parametrize(("shape", "small"), [((8, 8, 1), (8, 8, 1)), ((128, 128, 3), (64, 64, 3)), ((128, 100, 3), (64, 50, 3)),
                                              ((1, 200, 1), (1, 200, 1)), ((97, 97, 1), (48, 48, 1))])
def test_large_pictures_are_compared_at_a_smaller_size(shape, small):
    image = np.full(shape, 7, np.uint8)
    image[0] = 9
    assert copies.shrunk(image).shape == small and copies.shrunk(image).max() in (8, 9)


def test_the_first_warning_is_a_line_and_each_leaves_its_pairs(tmp_path):
    good, bad = (copies.added(measured(samples), DATA) for samples in (TEST[:100], EVERY))
    lines = [copies.noted(tmp_path, step, each) for step, each in ((10, good), (20, bad), (30, bad))]
    assert lines[0] == lines[2] == "" and "step 20" in lines[1] and "00000020_nearest.png" in lines[1] and "\n" not in lines[1]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["00000020_nearest.png", "00000030_nearest.png"]


def test_the_report_has_the_curve_the_sentence_and_the_pairs(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(
        json.dumps({"step": step, "closer[pixels]": value, "novelty[pixels]": 1 - value / 2}) + "\n"
        for step, value in ((10, 0.5), (20, 0.9))))
    bad = copies.added(measured(EVERY), DATA)._replace(name="pixels-step20")
    report.write(tmp_path, bad)
    text = (tmp_path / "report.html").read_text()
    assert "by heart" in text and "Nearest training pictures" in text and "Training" in text
    assert json.loads((tmp_path / "report.json").read_text())["closer[pixels]"] == bad.figures["closer[pixels]"]
    for name in ("report.png", "reports/pixels-step20.png"):
        with Image.open(tmp_path / name) as pairs:
            assert pairs.size == (4 * 128 + 3 * 2, 6 * 64 + 5 * 2)   # four pairs of 8x8, eight times as large, in a row
    report.write(tmp_path, Measured({"bits/dim": 1.0}, name="bpd"))
    assert not (tmp_path / "report.png").exists() and (tmp_path / "reports/pixels-step20.png").exists()
