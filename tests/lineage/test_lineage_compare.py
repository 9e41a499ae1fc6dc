"""A trained lineage is asked alike, measured by what guides nobody, and goes on where it was ended."""
import json

import numpy as np
import pytest
from made import EMPTY, LINEAGE, STAGES
from pages import page
from pipelines.toy_task import LABEL, LOW_RES, write
from pipelines.toy_task import page as toy
from stubs import random_params

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.image import to_unit
from diffusion_jax.lineage import compare, figures, samples
from diffusion_jax.lineage import page as written
from diffusion_jax.lineage.bench import row_of
from diffusion_jax.lineage.results import Point, Spread
from diffusion_jax.lineage.stages import Strength, Trained
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.samples import Job
from diffusion_jax.runs.folder import save_start
from diffusion_jax.train.state import plain, task_of

BY_KEY = {stage.key: stage for stage in STAGES}


def rows(lineage=LINEAGE, **errors):
    """A row for each stage, of 100 operations, a helper of 30."""
    return [Trained(stage, 0, f"x/{stage.needs.get('run', stage.key)}", 10, 30.0 if stage.helper else 100.0, 640, 1.0,
                    errors.get(stage.key, "")) for stage in lineage.stages]


def test_operations_of_helpers_are_shared():
    """CLIP is needed by DALL·E and unCLIP, the prior by unCLIP alone, the dVAE by DALL·E; what measures is nobody's."""
    course = compare.Course(LINEAGE, rows(), 20, None)
    charged = {key: compare.charged(course, BY_KEY[key], 0) for key in ("dalle", "adm", "unclip", "dit", "cads")}
    assert charged == {"dalle": 100 + 30 + 15, "adm": 130, "unclip": 100 + 30 + 15, "dit": 100, "cads": 100}
    assert list(compare.shared(LINEAGE)) == ["What CLIP took is divided equally among DALL·E, unCLIP."]


def test_what_failed_is_named_where_it_is_needed():
    course = compare.Course(LINEAGE, rows(guide="it broke"), 20, None)
    with pytest.raises(ConfigError, match="noisy classifier, which it needs, failed: it broke"):
        compare.folders_of(course, BY_KEY["adm"], 0)
    assert compare.folders_of(course, BY_KEY["cads"], 0) == {"run": "x/dit"}
    with pytest.raises(ConfigError, match="glide was not trained"):
        row_of(rows(), "glide", 0)


def test_all_systems_are_asked_for_the_same():
    of_label, of_prompt = (samples.conditions_of(BY_KEY[key], LINEAGE, 25) for key in ("dit", "unclip"))
    assert of_label.total == of_prompt.total == 30 and of_label.batch == of_prompt.batch == 100
    np.testing.assert_array_equal(of_label.labels, of_prompt.labels)
    assert of_label.prompts == of_prompt.prompts and of_label.prompts[3] == "a handwritten one"
    assert of_label.labels[3] == 1 and of_label.request.label[1] == 1 and of_prompt.request.prompt[1] == "a handwritten one"
    alone = samples.conditions_of(BY_KEY["dit"], LINEAGE._replace(classes=(), prompts=()), 25)
    assert alone.total == 25 and alone.request.label is None and alone.labels is None and alone.prompts is None


def test_a_curve_has_the_places_that_all_seeds_have():
    curves = [{4.0: {"FID": 1.0}, 1.0: {"FID": 2.0}}, {1.0: {"FID": 3.0}}]
    assert compare.points(curves) == (Point(1.0, {"FID": Spread((2.0, 3.0))}),) and compare.points([]) == ()


def test_a_column_is_shown_for_each_class():
    conditions = samples.conditions_of(BY_KEY["dit"], LINEAGE, 60)
    images = conditions.labels.astype(np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    table = compare.gallery(images, conditions)
    assert table.shape == (40, 8, 8, 1) and table[:10, 0, 0, 0].tolist() == [*range(10)] == table[30:, 0, 0, 0].tolist()


def test_an_upsampler_follows(tmp_path):
    small, large = (write(tmp_path / name, config) for name, config in
                    dict(small=toy(LABEL), large=toy(LABEL, LOW_RES, side=16)).items())
    stage = EMPTY._replace(key="glide", needs={"upsampler": "large"}, sample={"steps": 2})
    pipe = samples.pipeline_of(stage, str(small), {"upsampler": str(large)})
    assert pipe.picture_shape == (16, 16, 1) and pipe.recipe.steps == 2
    (_, sample) = written.commands(stage._replace(page="x"), LINEAGE, "runs")
    assert "--upsampler runs/large" in sample


# All of it ------------------------------------------------------------------------------------------------------------------


def started(root, key, name, seed):
    """A tiny run with random weights."""
    config = plain(page(name))
    task, data = task_of(config), config["data"]
    record = build(data["decode"])(build(data["train"])[0], np.random.default_rng(0))
    batch = {part: np.asarray(value)[None] for part, value in record.items() if not isinstance(value, str)}
    batch["image"] = to_unit(batch["image"])
    save_start(root / key, config, random_params(task, batch, seed, scale=0.1))
    return str(root / key)


@pytest.mark.slow
def test_a_lineage_is_measured_and_goes_on_where_it_was_ended(tmp_path, monkeypatch):
    dit = EMPTY._replace(key="dit", name="DiT", page="digits:tiny", sample={"steps": 2}, strength=Strength("guidance", (1, 3)))
    cads = EMPTY._replace(key="cads", name="CADS", needs={"run": "dit"}, sample={"steps": 2, "guidance": 3.0, "cads": "s=0.1"})
    stages = (BY_KEY["measure"], BY_KEY["clip"]._replace(key="judge"), dit, cads, BY_KEY["adm"], BY_KEY["guide"])
    lineage = LINEAGE._replace(stages=stages, judge="judge", seeds=1)
    for seed, (key, name) in enumerate([("measure", "digits_classifier"), ("judge", "digits_clip"), ("dit", "digits")]):
        started(tmp_path, key, name, seed)
    trained = [row._replace(folder=str(tmp_path / row.folder[2:])) for row in rows(lineage, guide="it broke")]

    def ended(self, *_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Pipeline, "__call__", ended)                       # in the middle: at the clock
        compare.compare(lineage, trained, str(tmp_path), print, 20)
    told = []
    first = compare.compare(lineage, trained, str(tmp_path), told.append, 20)
    assert told == ["comparing DiT", "comparing CADS", "comparing ADM"]
    measured = {system.stage.key: system for system in first.systems}
    assert measured["adm"].error == "noisy classifier, which it needs, failed: it broke" and not measured["adm"].figures
    figures = measured["dit"].figures
    assert {"FID", "recall", "accuracy", "CLIP score", "bits/dim", "network calls"} <= set(figures)
    assert figures["network calls"].mean == 2 and measured["cads"].figures["network calls"].mean == 4
    curve = measured["dit"].curve
    assert [point.value for point in curve] == [1, 3] and curve[0].figures["FID"] == figures["FID"]
    assert measured["dit"].pictures.shape == (20, 8, 8, 1) == measured["dit"].along.shape and measured["cads"].along is None
    assert "FID" in first.real and "accuracy" not in first.real            # 20 of the held-out digits are of 8 classes
    monkeypatch.setattr(Job, "batches", lambda _: pytest.fail("pictures are made again"))
    again = compare.compare(lineage, trained, str(tmp_path), print, 20)
    assert json.dumps(written.plain(again)) == json.dumps(written.plain(first))
    monkeypatch.undo()
    sharper = lineage._replace(stages=tuple(replace_steps(stage) for stage in stages))
    other = compare.compare(sharper, [row._replace(stage=replace_steps(row.stage)) for row in trained], str(tmp_path), print, 20)
    assert other.systems[0].figures["network calls"].mean == 3


@pytest.mark.slow
def test_without_classes_a_clip_measures(tmp_path):
    """Distances and shares are of its features, and it is asked whether a picture shows its text."""
    stages = (BY_KEY["clip"]._replace(key="judge"), EMPTY._replace(
        key="sd", name="SD", page="sd3_tiny:tiny", sample={"steps": 2}, strength=Strength("guidance", (1, 3)), ask="prompt"))
    lineage = LINEAGE._replace(
        stages=stages, measure="judge", judge="judge", reference="sd", classes=(), prompts=LINEAGE.prompts[:3], seeds=1)
    for seed, (key, name) in enumerate([("judge", "digits_clip"), ("sd", "sd3_tiny")]):
        started(tmp_path, key, name, seed)
    trained = [row._replace(folder=str(tmp_path / row.folder[2:])) for row in rows(lineage)]
    made = compare.compare(lineage, trained, str(tmp_path), print, 20)
    (system,) = made.systems
    assert not system.error and system.pictures.shape == (12, 8, 8, 1) and system.columns == 3
    assert {"FID", "precision", "recall", "CLIP score", "own caption first of 10"} <= set(system.figures)
    assert "accuracy" not in system.figures and "accuracy" not in made.real and made.real["FID"] > 0
    text = written.page(made, str(tmp_path), figures.draw(made, tmp_path / "figures"))
    assert "in the features of a\nCLIP that was trained for nothing else." in text
    assert "own caption first of 10" in (tmp_path / "figures" / "tradeoff.svg").read_text()


def replace_steps(stage):
    """The stage with a step more."""
    return stage._replace(sample={**stage.sample, "steps": 3}) if stage.sample else stage
