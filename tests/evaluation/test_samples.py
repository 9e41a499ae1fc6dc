"""A pipeline's samples as a set of images: the same whatever the batches, the best of several, and what tells them apart."""
import dataclasses

import numpy as np
import pytest
from pages import measuring

from diffusion_jax.build import ConfigError
from diffusion_jax.data.image import to_unit
from diffusion_jax.evaluation import features, metrics, samples
from diffusion_jax.pipelines import rerank

QUICK = dict(num=40, batch=16, changes={"steps": "2"})


@pytest.fixture(scope="module")
def run(fresh):
    return fresh("digits")


def rows(images, size):
    batches = list(images.batches(range(0, len(images), size), size))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_samples_do_not_depend_on_their_batches(run):
    sampled = samples.sampled(run, measuring(**QUICK))
    whole, parts = rows(sampled.images, 40), rows(sampled.images, 16)
    assert whole["image"].shape == (40, 8, 8, 1) and whole["image"].dtype == np.uint8
    np.testing.assert_array_equal(whole["label"], np.arange(40) % 10)
    np.testing.assert_array_equal(parts["label"], whole["label"])
    assert np.abs(parts["image"].astype(int) - whole["image"]).max() <= 1
    (middle,) = sampled.images.batches([16], 16)
    np.testing.assert_array_equal(middle["image"], parts["image"][16:32])


def test_bytes_are_rounded_as_in_adms_files_where_that_is_asked(run):
    options = {**QUICK, "num": 16}
    down, nearest = (rows(samples.sampled(run, measuring(**options, **more)).images, 16)["image"].astype(int)
                     for more in ({"rounding": "down"}, {}))
    assert set(np.unique(nearest - down)) <= {0, 1} and 0.2 < np.mean(nearest - down) < 0.8 - np.mean(nearest == 0) / 4
    assert samples.sampled(run, measuring(**options, rounding="down")).figures["rounding"] == "down"


def test_the_report_says_how_they_are_made(run):
    options = measuring(num=20, changes={"guidance": 2.0, "steps": "2"})
    assert samples.sampled(run, options).figures == {"samples": 20, "sampler": "ddim", "steps": 2, "guidance": 2.0}
    assert samples.sampled(run, measuring()).figures["samples"] == run.config["evaluate"]["num"]


def test_what_they_depend_on_tells_them_apart(run, fresh, judge):
    other = fresh("digits", seed=1)._replace(folder=run.folder)
    in_memory = run._replace(digest=0)
    guided = {**QUICK, "classifier": judge.folder}
    changes = [(run, QUICK), (other, QUICK), (run, QUICK | {"num": 30}), (run, QUICK | {"seed": 2}), (run, guided),
               (run, QUICK | {"rounding": "down"}),
               (run, QUICK | {"changes": {"steps": "3"}}), (run, QUICK | {"rerank": judge.folder, "candidates": 2})]
    identities = [samples.sampled(each, measuring(**options)).identity for each, options in changes]
    assert len({str(identity) for identity in identities}) == len(changes)
    assert samples.sampled(in_memory, measuring(**QUICK)).identity == identities[0]


def test_a_killed_evaluation_goes_on(run, stub, monkeypatch):
    options = measuring(features="stub", **QUICK)
    straight = metrics.measured(run, options)
    made = []

    class Killed(samples.Samples):
        def batches(self, starts, size):
            for first, batch in zip(starts, super().batches(starts, size), strict=True):
                made.append(first)
                if len(made) == 3:
                    raise KeyboardInterrupt
                yield batch

    monkeypatch.setattr(samples, "Samples", Killed)
    with pytest.raises(KeyboardInterrupt):
        metrics.measured(run, options)
    assert metrics.measured(run, options).figures == straight.figures
    assert made == [0, 16, 32, 16, 32]                                         # the second was not yet written
    assert (features.Path(run.folder) / features.FOLDER).exists()


@pytest.mark.slow
def test_the_best_of_several_candidates_are_surer(run, judge):
    def sureness(**options):
        sweep = dataclasses.replace(measuring(num=20, changes={"steps": "2"}, **options), swept="candidates")  # from 1 on
        images = samples.sampled(run, sweep).images
        batch = rows(images, 20)
        return rerank.sureness(judge.model, to_unit(batch["image"]), batch["label"]), batch["label"]

    alone, of_one, of_four = sureness(), *(sureness(rerank=judge.folder, candidates=n) for n in (1, 4))
    np.testing.assert_allclose(alone[0], of_one[0], rtol=1e-5)
    assert np.mean(of_four[0]) > np.mean(alone[0])
    np.testing.assert_array_equal(of_four[1], np.arange(20) % 10)


@pytest.mark.parametrize(("options", "says"), [
    (dict(candidates=2), "needs both --rerank"),
    (dict(rerank="x"), "needs both --rerank"),
    (dict(rerank="x", candidates=1), "chooses among candidates, and here is 1"),
    (dict(weak_step=2), "--weak_step is a step of the run --weak"),
    (dict(changes={"classifier_scale": 2.0}), "--classifier_scale needs a --classifier"),
    (dict(changes={"phi": 0.5}), "phi .* is of guidance, which is 1 here"),
    (dict(num=5), "5 samples do not cover the 10 classes"),
])
def test_what_changes_nothing_is_refused(run, options, says):
    with pytest.raises(ConfigError, match=says):
        samples.sampled(run, measuring(**{"num": 20} | options))


def test_a_sweep_of_guidance_may_pass_through_none(run):
    changes = {"guidance": 1.0, "phi": 0.5}
    pipe = samples.pipeline_of(run, measuring(changes=changes, weak=run.folder, swept="guidance"))
    assert pipe.weak is None
    pipe = samples.pipeline_of(run, measuring(changes=changes | {"guidance": 2.0}, weak=run.folder, swept="guidance"))
    assert pipe.weak is not None and pipe.recipe.guidance == 2.0


def test_only_what_is_named_helps_a_run_that_is_measured(run, monkeypatch):
    """Neither the upsampler that came with a model, nor the judge, which keeps the best of each class."""
    monkeypatch.setattr("diffusion_jax.pipelines.unclip.own_upsampler", lambda decoder: pytest.fail("it was opened"))
    pipe = samples.pipeline_of(run, measuring(rerank="not opened here", candidates=2))
    assert (pipe.upsamplers, pipe.judge, pipe.candidates) == ((), None, 1)


def test_judges_of_another_kind_or_size(run, fresh, clip, judge):
    with pytest.raises(ConfigError, match="--rerank .* holds a CLIP: give the folder of a noisy classifier"):
        samples.sampled(run, measuring(num=20, rerank=clip.folder, candidates=2))
    images = samples.sampled(run, measuring(num=20)).images
    with pytest.raises(ConfigError, match="--rerank judges labelled images"):
        samples.best_of(dataclasses.replace(images, raw={}), judge, 2)
    larger = judge._replace(model=judge.model.replace(task=dataclasses.replace(judge.task, shape=(16, 16, 1))))
    with pytest.raises(ConfigError, match="images of .16, 16, 1., this model makes .8, 8, 1."):
        samples.best_of(images, larger, 2)
    with pytest.raises(ConfigError, match="judges images of .16, 16, 1., this model makes .8, 8, 1."):
        rerank.check(larger, images.pipe.picture_shape)
