"""What a run has is shown, and nothing else; what a page may not ask is refused in the library's words."""
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.studio.desk import Form, filled, offer_of


def seen(desk, name):
    fields = desk.shown(filled(name, desk.pipe(name)))
    return {field for field, how in zip(Form._fields, fields, strict=True) if how["visible"]}


COMMON = {"run", "num", "seed", "steps", "sampler", "times", "threshold", "guidance", "phi", "interval", "cads"}


def test_a_model_of_classes_shows_classes_and_no_text(desk):
    assert seen(desk, "label") == COMMON | {"classes"}
    assert {"strength", "inversion", "mix", "guidance", "phi", "CADS", "switch", "samplers"} <= desk.offers["label"].tools
    assert "variations" not in desk.offers["label"].tools


def test_a_model_of_texts_shows_texts_and_no_classes(desk):
    assert seen(desk, "text") == COMMON | {"prompt", "negative"}


def test_an_upsampler_is_refused(folders):
    with pytest.raises(ConfigError, match="reads low_res, which the studio does not give"):
        offer_of(pipeline(folders.upsampler))


def test_choices_are_those_that_go_with_the_run(desk):
    assert {"ddim", "heun", "dpmpp_2m"} <= set(desk.offers["label"].choices["sampler"])
    form = filled("label", desk.pipe("label"))._replace(sampler="ddim,eta=0.5")
    shown = dict(zip(Form._fields, desk.shown(form), strict=True))
    assert shown["sampler"]["value"] in shown["sampler"]["choices"]
    assert shown["classes"]["choices"] == [str(number) for number in range(10)]


def test_the_form_of_a_run_changes_nothing(desk):
    for name, pipe in desk.pipes.items():
        asked, _, num, seed = desk.asked(filled(name, pipe, num=3, seed=5))
        assert asked is pipe and (num, seed) == (3, 5)


def test_a_form_changes_what_differs(desk):
    form = filled("label", desk.pipe("label"))
    pipe, request, _, _ = desk.asked(form._replace(classes=["3", "4"], guidance=2.0, phi=0.5, steps=7, cads=0.1))
    recipe = pipe.recipe
    assert (recipe.guidance, recipe.phi, recipe.steps, recipe.cads) == (2.0, 0.5, 7, "s=0.1") and request.labels == ("3", "4")


@pytest.mark.parametrize(("change", "says"), [
    (dict(run="../../etc"), "unknown run"),
    (dict(run=["label"]), "unknown run"),
    (dict(num=65), "number is 1 ... 64"),
    (dict(num=20, classes=["1", "2", "3", "4"]), "number is 1 ... 16"),
    (dict(num=True), "number is a whole number"),
    (dict(seed=-1), "seed is"),
    (dict(seed=2**32), "seed is"),
    (dict(steps=0), "steps is"),
    (dict(steps=10**9), "steps is"),
    (dict(phi=0.5), "phi .* is of guidance"),
    (dict(sampler="ddimm"), "did you mean 'ddim'"),
    (dict(sampler="os:system"), "no name|not allowed|not '|Python itself"),
    (dict(guidance="x"), "guidance is a number"),
    (dict(cads="0.1,tau1=x"), "takes a number"),
    (dict(prompt="x" * 5000), "at most"),
])
def test_what_may_not_be_asked_is_refused(desk, change, says):
    form = filled("label", desk.pipe("label"))._replace(**change)
    with pytest.raises(ConfigError, match=says) as error:
        desk.asked(form)
    assert "\n" not in str(error.value)




@pytest.mark.slow
def test_a_decoder_of_unclip_has_its_own_edits():
    from pipelines.unclip_task import runs

    pipe = pipeline(runs().decoder, prior=runs().prior, upsamplers=())
    offer = offer_of(pipe)
    assert offer.tools == {"variations", "interpolation", "text difference"} and "prompt" in offer.fields
    assert "classes" not in offer.fields and "negative" not in offer.fields


def test_a_transformer_over_tokens_is_asked_for_a_text():
    from pipelines.test_tokens import RUN

    offer = offer_of(pipeline(RUN))
    assert offer.fields == {"num", "seed", "prompt", "guidance", "temperature"} and not offer.tools
