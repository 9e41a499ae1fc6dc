"""What can be asked of a pipeline, by what it reads."""
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines.choices import classes_of, fields_of, goes_with, grids_of, samplers_of
from diffusion_jax.pipelines.pipeline import pipeline
from pipelines.test_tokens import RUN

COMMON = {"steps", "sampler", "times", "threshold", "guidance", "phi", "interval", "cads"}


def test_a_model_of_classes_has_classes_and_no_text(folders):
    pipe = pipeline(folders.label)
    assert fields_of(pipe) == COMMON | {"label"} and classes_of(pipe) == [str(number) for number in range(10)]


def test_a_model_of_texts_has_texts_and_no_classes(folders):
    pipe = pipeline(folders.text)
    assert fields_of(pipe) == COMMON | {"prompt", "negative"} and classes_of(pipe) == []


def test_a_transformer_over_tokens_has_a_text():
    pipe = pipeline(RUN)
    assert fields_of(pipe) == {"prompt", "guidance", "temperature"}
    assert samplers_of(pipe) == grids_of(pipe) == classes_of(pipe) == []


def test_an_upsampler_is_refused(folders):
    with pytest.raises(ConfigError, match="reads low_res, which cannot be given here"):
        fields_of(pipeline(folders.upsampler))


def test_choices_are_those_that_go_with_the_model(folders):
    pipe = pipeline(folders.label)
    assert {"ddim", "heun", "dpmpp_2m"} <= set(samplers_of(pipe))
    assert "uniform" in grids_of(pipe) and "flow_match" not in grids_of(pipe)
    assert goes_with(pipe, steps=7) and not goes_with(pipe, sampler="nothing")


@pytest.mark.slow
def test_a_decoder_of_unclip_has_a_text_where_it_has_a_prior():
    from pipelines.unclip_task import runs

    fields = fields_of(pipeline(runs().decoder, prior=runs().prior, upsamplers=()))
    assert "prompt" in fields and "negative" not in fields and "label" not in fields
