"""Edits and experiments as sheets: their rows are those of `pipe.edit` and of calls of the pipeline."""
import numpy as np
import pytest
from pipelines.compilations import compilations
from pipelines.test_progress import Count
from pipelines.test_tokens import RUN
from pipelines.toy_task import LABEL, page, write

from diffusion_jax.build import ConfigError
from diffusion_jax.evaluation.experiments import (
    EDITS,
    EXPERIMENTS,
    SAMPLERS,
    Ask,
    diversity,
    offered,
    sheet,
    steps_of_sheet,
)
from diffusion_jax.pipelines.path import path
from diffusion_jax.pipelines.pipeline import pipeline

GREY = np.full((8, 8, 1), 99, np.uint8)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return pipeline(write(tmp_path_factory.mktemp("experiments") / "label", page(LABEL)))


def test_diversity_is_the_mean_distance_of_pairs():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    flat = images.reshape(3, -1) / 127.5
    far = np.mean([np.linalg.norm(flat[i] - flat[j]) for i, j in ((0, 1), (0, 2), (1, 2))])
    assert diversity(images) == pytest.approx(far, rel=1e-5)


def test_a_run_has_the_experiments_of_its_conditions(pipe):
    assert offered(pipe) == {*EXPERIMENTS} - {"variations", "interpolation", "text difference", "runs"}
    assert offered(pipeline(RUN)) == set()


@pytest.mark.slow
def test_a_decoder_of_unclip_has_its_own_edits():
    from pipelines.unclip_task import runs

    decoder = pipeline(runs().decoder, prior=runs().prior, upsamplers=())
    assert offered(decoder) == {"variations", "interpolation", "text difference"}


def test_rows_are_those_of_the_library(pipe):
    made = sheet(pipe, "guidance", Ask("3", 2, 5, [2.5, -1.0]))
    rows = pipe.edit.guidance("3", values=[2.5, -1.0], num=2, seed=5).images
    assert made.names == ["guidance 2.5", "guidance -1"]
    for (picture,), row in zip(made.images, rows, strict=True):
        assert np.array_equal(picture[:, :8], row[0])
    assert made.captions[0] == [f"diversity {diversity(rows[0]):.2f}"]


def test_all_strengths_of_cads_are_one_program(pipe):
    sheet(pipe, "CADS", Ask(3, 2, values=[0, 0.1]))
    with compilations() as programs:
        made = sheet(pipe, "CADS", Ask(3, 2, values=[0, 0.05, 0.25, 1]))
    assert not programs
    assert np.array_equal(made.images[2][0][:, :8], pipe.using(cads="s=0.25")(3).images[0])


def test_the_path_is_that_of_the_first_picture(pipe, tmp_path):
    meter = Count()
    made = sheet(pipe, "path", Ask(3, 2, 7), meter)
    points = list(path(pipe, 3, seed=7))
    assert made.names[0].startswith("step 0, σ/α ") and len(made.names) == len(points) == 5
    for pictures, point in zip(made.images, points, strict=True):
        assert np.array_equal(pictures, [point.noisy[0], point.clean[0]])
    assert meter.done == steps_of_sheet(pipe, "path", Ask(3)) == 4
    assert made.save(tmp_path / "path.gif")[0].stat().st_size > 100


def test_runs_are_beside_each_other_and_a_refusal_stops_nobody(pipe):
    """A distilled model beside its teacher: each samples as its own recipe says."""
    meter = Count()
    ask = Ask(3, 2, 5, runs=dict(teacher=pipe, student=pipe.using(steps=2), tokens=pipeline(RUN)))
    made = sheet(pipe, "runs", ask, meter)
    assert made.names[:2] == ["teacher", "student"]
    assert made.names[2].startswith("tokens: label (--label) is for diffusion models")
    assert np.array_equal(made.images[1][0][:, :8], pipe.using(steps=2)(3, 2, 5).images[0])
    assert [row[0].split(",")[0] for row in made.captions[:2]] == ["4 calls", "2 calls"]
    assert made.images[2] == made.captions[2] == []
    assert meter.done == steps_of_sheet(pipe, "runs", ask) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["guidance", "phi", "CADS", "switch", "samplers", "strength", "inversion", "mix", "path"])
def test_every_experiment_makes_its_sheet(pipe, name, tmp_path):
    meter = Count()
    ask = Ask(3, 2, images=[GREY] if name in EDITS else [], to="7")
    made = sheet(pipe.using(guidance=2.0) if name == "phi" else pipe, name, ask, meter)
    assert len(made.names) == len(made.images) == len(made.captions) >= 3
    assert all(picture.dtype == np.uint8 for row in made.images for picture in row)
    assert meter.done == steps_of_sheet(pipe, name, ask)
    if EXPERIMENTS[name].values:
        assert len(made.names) == len(EXPERIMENTS[name].values)
    if name == "samplers":
        text = made.captions[0][-1]
        assert made.names == SAMPLERS and text.startswith("4 steps, 4 calls, ") and text.endswith(" s a picture")
    assert bool(made.save(tmp_path / "x.gif")) == (name != "samplers")


@pytest.mark.parametrize(("name", "images", "says"), [
    ("strength", 0, "strength begins with a picture, which is missing"),
    ("interpolation", 1, "a picture and a second one"),
    ("variations", 1, "unCLIP"),
    ("guidnce", 0, "did you mean 'guidance'"),
])
def test_what_lacks_something_is_refused(pipe, name, images, says):
    with pytest.raises(ConfigError, match=says):
        sheet(pipe, name, Ask(images=[GREY] * images))
