"""A run opened with its helpers: each becomes its part of the pipeline, or is refused."""
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines import unclip
from diffusion_jax.pipelines.helpers import helped
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.request import Helpers
from diffusion_jax.runs.folder import open_run
from pipelines.unclip_task import runs


def test_each_helper_has_its_part(folders):
    helpers = Helpers(classifier=str(folders.classifier), weak=str(folders.other), upsampler=(str(folders.upsampler),))
    pipe = helped(folders.label, helpers)
    assert pipe.guide.folder == str(folders.classifier) and pipe.weak.folder == str(folders.other)
    assert [each.run.folder for each in pipe.upsamplers] == [str(folders.upsampler)]
    assert pipe.picture_shape == (16, 16, 1) and (pipe.judge, pipe.prior) == (None, None)
    ranked = helped(folders.label, Helpers(rerank=str(folders.classifier), candidates=3))
    assert ranked.judge.folder == str(folders.classifier) and ranked.candidates == 3


def test_without_helpers_it_is_the_pipeline_of_the_folder(folders):
    run = open_run(folders.label, which="params", step=0)
    assert helped(run, Helpers()).run is run
    alone = helped(folders.label, Helpers(), which="params", step=0)
    assert (alone.run.which, alone.run.step) == ("params", 0)
    np.testing.assert_array_equal(alone(3, num=2).images, pipeline(folders.label)(3, num=2).images)


def test_the_weak_model_may_be_of_an_earlier_step(folders):
    assert helped(folders.label, Helpers(weak=str(folders.other), weak_step=0)).weak.step == 0
    with pytest.raises(ConfigError, match="7"):
        helped(folders.label, Helpers(weak=str(folders.other), weak_step=7))


def test_the_upsampler_that_came_with_a_model_may_be_left_out(folders, monkeypatch):
    monkeypatch.setattr(unclip, "own_upsampler", lambda decoder: [str(folders.upsampler)])
    (own,) = helped(folders.label, Helpers()).upsamplers
    assert own.run.folder == str(folders.upsampler)
    assert helped(folders.label, Helpers(), own_upsampler=False).upsamplers == ()
    named = Helpers(upsampler=(str(folders.upsampler),))
    assert len(helped(folders.label, named, own_upsampler=False).upsamplers) == 1


def test_a_prior_samples_as_the_helpers_say(monkeypatch):
    opened = []

    def open_prior(folder, *_, **options):
        opened.append(folder)
        return runs().prior

    monkeypatch.setattr(unclip, "open_run", open_prior)
    plain = helped(runs().decoder, Helpers(prior="prior")).prior
    assert (plain.recipe, plain.best) == (Recipe(), unclip.BEST)
    changed = helped(runs().decoder, Helpers(prior="prior", prior_guidance=3.0, prior_steps="7", prior_best=4)).prior
    assert (changed.recipe, changed.best) == (Recipe(guidance=3.0, steps=7), 4)
    assert opened == ["prior", "prior"]                                         # once for each
    assert helped(runs().decoder, Helpers(prior="caption")).prior == "caption"


@pytest.mark.parametrize(("options", "says"), [
    (dict(prior_guidance=2.0), "are of a prior's folder: give --prior FOLDER"),
    (dict(prior_best=2), "are of a prior's folder: give --prior FOLDER"),
    (dict(prior="text"), "a prior .--prior. is for a decoder of unCLIP"),
    (dict(candidates=2), "candidates .--candidates. are what a judge chooses among"),
    (dict(weak="classifier"), "--weak .* holds a noisy classifier: give the folder of a diffusion model"),
    (dict(classifier="label"), "--classifier .* holds a diffusion model: give the folder of a noisy classifier"),
    (dict(upsampler=("classifier",)), "--upsampler .* holds a noisy classifier"),
    (dict(rerank="label", candidates=2), "--rerank .* holds a diffusion model"),
], ids=str)
def test_helpers_that_do_not_help_are_refused(folders, options, says):
    paths = {name: str(path) for name, path in vars(folders).items()}
    options = {name: paths.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
    if "upsampler" in options:
        options["upsampler"] = tuple(paths[name] for name in options["upsampler"])
    with pytest.raises(ConfigError, match=says):
        helped(folders.label, Helpers(**options))


@pytest.mark.parametrize("options", [
    dict(prior="text", prior_best=4), dict(prior_steps="3"), dict(prior="caption", prior_guidance=2.0),
], ids=str)
def test_options_of_a_prior_need_its_folder(options):
    with pytest.raises(ConfigError, match="are of a prior's folder: give --prior FOLDER"):
        helped(runs().decoder, Helpers(**options))
