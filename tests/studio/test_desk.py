"""What a run has is shown, and nothing else; what a page may not ask is refused in the library's words."""
import numpy as np
import pytest
from pipelines.compilations import compilations

from diffusion_jax.build import ConfigError
from diffusion_jax.data.pictures import save_png
from diffusion_jax.pipelines.jobs import Device, making
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.studio.desk import Desk, Form, filled


def seen(desk, name):
    fields = desk.shown(filled(name, desk.pipe(name)))
    return {field for field, how in zip(Form._fields, fields, strict=True) if how["visible"]}


COMMON = {"run", "num", "seed", "steps", "sampler", "times", "threshold", "guidance", "phi", "interval", "cads"}


def test_what_a_run_has_is_to_be_seen(desk):
    assert seen(desk, "label") == COMMON | {"label"}
    assert seen(desk, "text") == COMMON | {"prompt", "negative"}
    assert {"strength", "CADS", "path"} <= desk.tools["label"] and "variations" not in desk.tools["label"]


def test_an_upsampler_is_refused(folders):
    with pytest.raises(ConfigError, match="reads low_res, which cannot be given here"):
        Desk({"upsampler": pipeline(folders.upsampler)})


def test_the_runs_own_sampler_is_among_the_choices(desk):
    form = filled("label", desk.pipe("label"))._replace(sampler="ddim,eta=0.5")
    shown = dict(zip(Form._fields, desk.shown(form), strict=True))
    assert shown["sampler"]["value"] in shown["sampler"]["choices"]
    assert shown["label"]["choices"] == [str(number) for number in range(10)]


def test_the_form_of_a_run_changes_nothing(desk):
    for name, pipe in desk.pipes.items():
        opened, _, num, seed = desk.call_of(filled(name, pipe, num=3, seed=5))
        assert opened is pipe and (num, seed) == (3, 5)


def test_a_form_changes_what_differs(desk):
    form = filled("label", desk.pipe("label"))
    pipe, request, _, _ = desk.call_of(form._replace(label=["3", "4"], guidance=2.0, phi=0.5, steps=7, cads=0.1))
    recipe = pipe.recipe
    assert (recipe.guidance, recipe.phi, recipe.steps, recipe.cads) == (2.0, 0.5, 7, "s=0.1") and request.labels == ("3", "4")


@pytest.mark.parametrize(("change", "says"), [
    (dict(run="../../etc"), "unknown run"),
    (dict(run=["label"]), "unknown run"),
    (dict(num=65), "number is 1 ... 64"),
    (dict(num=20, label=["1", "2", "3", "4"]), "number is 1 ... 16"),
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
        desk.call_of(form)
    assert "\n" not in str(error.value)



# Pictures that were made before ---------------------------------------------------------------------------------------------


def test_a_picture_fills_the_form_that_made_it(desk, tmp_path):
    form = filled("label", desk.pipe("label"), label=["3", "4"], num=2, seed=7)
    pipe, request, num, seed = desk.call_of(form)
    pipe(request, num, seed).save(f"{tmp_path}/out/")
    for file in sorted((tmp_path / "out").glob("*.png")):
        assert desk.form_of(file.read_bytes()) == form


def test_a_picture_that_says_nothing_is_refused_without_a_path(desk, tmp_path):
    save_png(tmp_path / "x.png", np.zeros((8, 8, 1), np.uint8))
    with pytest.raises(ConfigError, match="this picture does not say how it was made") as error:
        desk.form_of((tmp_path / "x.png").read_bytes())
    assert "/" not in str(error.value).split(":")[0]
    for data in (None, b"", b"PNG"):
        with pytest.raises(ConfigError):
            desk.form_of(data)


def test_a_picture_of_another_run_is_refused(desk, folders, tmp_path):
    pipeline(folders.label)(3).save(tmp_path / "x.png")
    with pytest.raises(ConfigError, match="of the run label, which is not open here"):
        Desk({"text": desk.pipe("text")}).form_of((tmp_path / "x.png").read_bytes())


@pytest.mark.slow
def test_after_it_is_warm_nothing_is_compiled_for_the_first_picture(desk):
    desk.warm(Device())
    with compilations() as programs:
        list(Device().watched(making(*desk.call_of(desk.first._replace(seed=9)))))
    assert not programs
