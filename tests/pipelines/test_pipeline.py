"""The object that a Python user holds: what it makes, what it shares, what it refuses."""
from dataclasses import replace

import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines import rerank
from diffusion_jax.pipelines.cascade import STRIDE
from diffusion_jax.pipelines.pipeline import Pipeline, pipeline
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.request import Request
from diffusion_jax.pipelines.sampling import draw, generate
from diffusion_jax.runs.folder import open_run
from pipelines.compilations import compilations
from pipelines.toy_task import classifier_page, write


@pytest.fixture(scope="module")
def pipe(folders):
    return pipeline(folders.label)


@pytest.fixture(scope="module")
def writer(folders):
    return pipeline(folders.text)


def far(a, b):
    return np.abs(a.astype(int) - b).max()


# What it makes --------------------------------------------------------------------------------------------------------------


def test_it_makes_what_its_parts_make(pipe):
    made = pipe([3, 7], num=2, seed=5)
    raw = {"label": np.array([3, 3, 7, 7])}
    x = next(generate(pipe.run.model, pipe.recipe, raw, 4, 5))
    assert made.images.dtype == np.uint8 and made.images.shape == (4, 8, 8, 1)
    assert far(made.images, np.clip((x + 1) * 127.5, 0, 255).round()) <= 1
    assert made.labels.tolist() == [3, 3, 7, 7] and made.prompts is None
    assert (made.seed, made.recipe["steps"], made.run["digest"]) == (5, 4, pipe.run.digest)


def test_a_request_may_be_one_word(pipe, writer):
    np.testing.assert_array_equal(pipe(3, num=2).images, pipe(Request(label=3), num=2).images)
    np.testing.assert_array_equal(pipe(3, num=2).images, pipe(Request(label="3"), num=2).images)
    np.testing.assert_array_equal(pipe(num=4).labels, [0, 1, 2, 3])
    texts = writer(["a three", "a one"], num=2)
    assert texts.prompts == ("a three", "a three", "a one", "a one") and texts.labels is None
    np.testing.assert_array_equal(texts.images[:2], writer("a three", num=2).images)


def test_a_picture_does_not_depend_on_num_or_batch(pipe):
    whole = pipe(3, num=5, seed=1).images
    assert far(pipe(3, num=2, seed=1).images, whole[:2]) <= 1
    assert far(pipe(3, num=5, seed=1, batch=2).images, whole) <= 1
    assert far(pipe(3, num=5, seed=2).images, whole) > 1


def test_pictures_come_in_batches_as_they_are_made(pipe):
    job = pipe.start([1, 2], num=3, seed=4, batch=4)
    parts = list(job.batches())
    assert job.total == 6 and [len(part) for part in parts] == [4, 2] and job.labels.tolist() == [1, 1, 1, 2, 2, 2]
    assert far(np.concatenate(parts), pipe([1, 2], num=3, seed=4).images) <= 1


def test_guidance_negative_and_classifier_change_the_pictures(pipe, writer, folders):
    assert far(pipe.using(guidance=4.0)(3, num=2).images, pipe(3, num=2).images) > 1
    strong = writer.using(guidance=4.0)
    assert far(strong(Request("a three", "a one"), num=2).images, strong("a three", num=2).images) > 1
    pulled = pipeline(folders.label, classifier=folders.classifier).using(classifier_scale=2000.0)
    assert far(pulled(3, num=2).images, pipe(3, num=2).images) > 1
    away = pipeline(folders.label, weak=folders.other).using(guidance=3.0)
    assert far(away(3, num=2).images, pipe.using(guidance=3.0)(3, num=2).images) > 1


def test_upsamplers_make_the_pictures_larger(pipe, folders):
    both = pipeline(folders.label, upsamplers=[folders.upsampler])
    assert both.picture_shape == (16, 16, 1) and pipe.picture_shape == (8, 8, 1)
    made = both([3, 7], num=2, seed=5)
    assert made.images.shape == (4, 16, 16, 1)
    small = Request(label=[3, 7], low_res=pipe([3, 7], num=2, seed=5).images)
    alone = pipeline(folders.upsampler)(small, num=2, seed=5 + STRIDE)
    assert far(made.images, alone.images) <= 2
    with pytest.raises(ConfigError, match=r"must read low_res: no upsampler"):
        pipeline(folders.label, upsamplers=[folders.other])(3)


def test_the_best_of_several_are_those_of_the_judge(pipe, folders):
    """Its logits are the brightness times a number for each class."""
    judge = open_run(folders.classifier)
    ranked = pipeline(folders.label, rerank=judge, candidates=4)
    pool = pipe([3, 7], num=8, seed=2).images.reshape(2, 8, 8, 8, 1)
    slope = np.asarray(judge.model.params["model"]["slope"])
    logits = (pool / 127.5 - 1).mean((2, 3, 4))[..., None] * slope
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    best = ranked([3, 7], num=2, seed=2)
    for i, label in enumerate((3, 7)):
        np.testing.assert_array_equal(best.images[2 * i : 2 * i + 2], pool[i][np.argsort(-scores[i, :, label])[:2]])
    assert best.labels.tolist() == [3, 3, 7, 7]


def test_a_judge_is_asked_before_anything_is_made(folders, monkeypatch):
    monkeypatch.setattr("diffusion_jax.pipelines.sampling._drawn", lambda *_: pytest.fail("something was made"))
    job = pipeline(folders.label, rerank=folders.classifier, candidates=4).start([3, 7], num=2)
    assert job.total == 4
    ranked = pipeline(folders.text, rerank=folders.classifier, candidates=4)
    assert ranked.start("a handwritten three").prompts == ("a handwritten three",)
    with pytest.raises(ConfigError, match="no training image is captioned 'a three'"):
        ranked("a three")


# What is compiled -----------------------------------------------------------------------------------------------------------


def test_another_seed_label_or_scale_compiles_nothing(pipe):
    guided = pipe.using(guidance=2.0, phi=0.5)
    guided(3, num=2)
    with compilations() as programs:
        guided(3, num=2, seed=9)
        guided(7, num=2)
        guided(Request(label="7"), num=2)
        guided.using(guidance=5.5, phi=0.1)([1, 2], num=1)
    assert not programs
    with compilations() as programs:
        pipe.using(steps=5)(3, num=3)
    assert programs                                                             # so that the count is one


def test_another_prompt_compiles_nothing(writer):
    guided = writer.using(guidance=2.0)
    guided(Request("a three", "a one"), num=2)
    with compilations() as programs:
        guided(Request("a handwritten nine", "eight"), num=2, seed=4)
        guided.using(guidance=3.0)(Request("zero", "a two"), num=2)
    assert not programs


def test_another_checkpoint_of_the_kind_compiles_nothing(pipe, folders):
    pipe(3, num=2)
    other, before = pipeline(folders.other), draw._cache_size()
    made = other(3, num=2)
    assert draw._cache_size() == before and far(made.images, pipe(3, num=2).images) > 1


def test_a_second_stream_compiles_nothing(pipe):
    list(pipe.using(guidance=2.0).stream(3, num=2, every=3))
    with compilations() as programs:
        list(pipe.using(guidance=7.0).stream(4, num=2, seed=3, every=3))
    assert not programs


# Streams --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 4, 7]), (5, [2, 7])])
def test_a_stream_ends_with_the_pictures_of_the_call(pipe, every, steps):
    long = pipe.using(steps=7, guidance=3.0)
    looks = list(long.stream([3, 7], num=1, seed=6, every=every))
    assert [step for step, _ in looks] == steps
    assert all(x.dtype == np.uint8 and x.shape == (2, 8, 8, 1) for _, x in looks)
    assert far(looks[-1][1], long([3, 7], num=1, seed=6).images) <= 1


@pytest.mark.parametrize("options", [dict(rerank="classifier", candidates=2), dict(upsamplers=["upsampler"])], ids=str)
def test_what_has_no_such_steps_has_no_stream(folders, options):
    parts = {name: getattr(folders, value) if isinstance(value, str) else value for name, value in options.items()}
    parts = {name: [folders.upsampler] if name == "upsamplers" else value for name, value in parts.items()}
    with pytest.raises(ConfigError, match="stream shows the steps of one model"):
        pipeline(folders.label, **parts).stream(3)


# What is refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "says"), [
    (dict(num=0), "num is 1 ... 10000000, got 0"),
    (dict(num=-2), "num is 1 ... 10000000"),
    (dict(num=10**12), "num is 1 ... 10000000, got 1000000000000"),
    (dict(num=2.0), "num is a whole number, 1 ... 10000000: got 2.0"),
    (dict(num=True), "num is a whole number"),
    (dict(num="4"), "num is a whole number, 1 ... 10000000: got '4'"),
    (dict(batch=0), "batch is 1 ... 10000000, got 0"),
    (dict(batch=None), "batch is a whole number"),
    (dict(seed=-1), "seed is 0 ... 4294967295, got -1"),
    (dict(seed=2**32), "seed is 0 ... 4294967295"),
    (dict(seed=2**63), "seed is 0 ... 4294967295"),
    (dict(seed=1.5), "seed is a whole number"),
    (dict(seed=None), "seed is a whole number"),
    (dict(request=Request(label="--3")), "unknown class '--3'"),
    (dict(request=Request(label="\u0663")), "unknown class"),
    (dict(request=Request(label="1_0")), "unknown class '1_0'"),
    (dict(request=Request(label="")), "unknown class ''"),
    (dict(request=10**30), "is outside 0 ... 9"),
    (dict(request=10), "label 10 is outside 0 ... 9"),
    (dict(request=-1), "label -1 is outside 0 ... 9"),
    (dict(request=3.0), "ask for a text, a label"),
    (dict(request="a three"), r"unknown name of a class \(this model reads no text\) 'a three': known: 0, 1"),
    (dict(request=Request(label=3, negative="a one")), "negative .--negative. is what guidance leads away from"),
    (dict(request=Request(complete=np.zeros((1, 8, 8, 1), np.uint8))), "complete .--complete. is for a transformer over tokens"),
], ids=str)
def test_mistakes_of_a_call_are_one_line(pipe, options, says):
    request = options.get("request", 3)
    numbers = {name: value for name, value in options.items() if name != "request"}
    calls = [pipe.__call__, pipe.start] + ([] if "batch" in numbers else [pipe.stream])
    for call in calls:
        with pytest.raises(ConfigError, match=says) as error:
            call(request, **numbers)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("changes", "says"), [
    (dict(guidence=2.0), "unknown sampling option 'guidence': did you mean 'guidance'"),
    (dict(phi=0.7), "phi .--phi. is of guidance, which is 1 here"),
    (dict(classifier_scale=3.0), "needs a --classifier"),
    (dict(sampler="ddmi"), "did you mean 'ddim'"),
    (dict(steps=0), "at least 1"),
    (dict(steps=None), "steps is a whole number or a text, got None"),
    (dict(steps="many"), "neither a number"),
    (dict(guidance="3"), "guidance is a number, got '3'"),
    (dict(sampler=["ddim"]), "sampler is a text, got"),
    (dict(sampler="edm,s_min=1"), "s_min changes nothing where s_churn is 0"),
    (dict(clip=True), "clip is a number, got True"),
    (dict(guidance=3.0, channels=1), "channels .--channels. 1 are all that the model has"),
    (dict(levels=0), "levels are those of the images that an upsampler reads"),
])
def test_changes_of_a_recipe_are_checked(pipe, changes, says):
    with pytest.raises(ConfigError, match=says):
        pipe.using(**changes)


def test_using_gives_another_pipeline(pipe):
    other = pipe.using(guidance=2.0).using(phi=0.5)
    assert (other.recipe.guidance, other.recipe.phi, other.recipe.steps) == (2.0, 0.5, 4)
    assert pipe.recipe == Recipe(steps=4) and other.run is pipe.run


@pytest.mark.parametrize(("name", "parts", "says"), [
    ("classifier", {}, "holds a noisy classifier: give the folder of a diffusion model or of a transformer over text"),
    ("label", dict(classifier="other"), "--classifier .*other holds a diffusion model: give the folder of a noisy classifier or"),
    ("label", dict(weak="classifier"), "--weak .*classifier holds a noisy classifier: give the folder of a diffusion model"),
    ("label", dict(rerank="other"), "--rerank .*other holds a diffusion model: give the folder of a noisy classifier or a CLIP"),
    ("label", dict(prior="text"), "a prior .--prior. is for a decoder of unCLIP"),
    ("label", dict(candidates=3), "candidates .--candidates. are what a judge chooses among"),
    ("label", dict(rerank="classifier", candidates="3"), "candidates is a whole number, 1 ... 10000000: got '3'"),
    ("label", dict(rerank="classifier", candidates=0), "candidates is 1 ... 10000000, got 0"),
    ("label", dict(upsamplers="runs/up"), "upsamplers are a list of folders: got 'runs/up'"),
    ("label", dict(upsamplers=[3]), r"upsampler .--upsampler. is a folder, or a run that is open: got 3"),
    ("upsampler", dict(rerank="classifier"), r"judges images of \(8, 8, 1\), this model makes \(16, 16, 1\)"),
], ids=str)
def test_folders_of_another_kind_are_refused(folders, name, parts, says):
    parts = {key: getattr(folders, value) if key in ("classifier", "weak", "rerank") else value for key, value in parts.items()}
    with pytest.raises(ConfigError, match=says) as error:
        pipeline(getattr(folders, name), **parts)
    assert "\n" not in str(error.value)
    if "classifier" in parts:
        with pytest.raises(ConfigError, match="holds a diffusion model: give the folder of"):
            pipeline(folders.label, classifier=open_run(folders.other))


def test_a_judge_wants_a_prompt_or_a_label(folders):
    ranked = pipeline(folders.label, rerank=folders.classifier, candidates=2)
    with pytest.raises(ConfigError, match="a judge ranks pictures of a prompt or a label: give one"):
        ranked(num=2)


def test_a_judge_wants_several_to_choose_among(folders):
    for options in ({}, {"candidates": 1}):
        with pytest.raises(ConfigError, match="among candidates, and here is 1: give candidates .--candidates., 2 or more"):
            pipeline(folders.label, rerank=folders.classifier, **options)(3)


@pytest.mark.parametrize("name", ["classifier", "weak", "rerank"])
def test_a_helper_that_is_no_folder_is_named_as_python_and_flags_do(folders, name):
    with pytest.raises(ConfigError) as error:
        pipeline(folders.label, **{name: 3})
    assert str(error.value) == f"{name} (--{name}) is a folder, or a run that is open: got 3"


def test_a_judge_cuts_a_prompt_only_where_one_says_so(folders, monkeypatch):
    def goals(judge, maker, prompts, labels, truncate):
        raise ConfigError(f"truncate {truncate}")

    monkeypatch.setattr(rerank, "goals", goals)
    ranked = pipeline(folders.text, rerank=folders.classifier, candidates=2)
    for truncate in (False, True):
        with pytest.raises(ConfigError, match=f"truncate {truncate}"):
            ranked.start(Request("a handwritten three", truncate=truncate))


def test_pictures_that_are_not_finite_are_refused(pipe, folders):
    model = pipe.run.model
    broken = jax.tree.map(lambda leaf: leaf * np.nan, model.params)
    with pytest.raises(ConfigError, match="not finite"):
        replace(pipe, run=pipe.run._replace(model=model.replace(params=broken)))(3)


def test_a_run_that_is_open_stays_as_it_is(folders, tmp_path):
    run = open_run(folders.label)
    assert isinstance(pipeline(run), Pipeline) and pipeline(run).run is run
    small = classifier_page()
    small["task"]["shape"] = [4, 4, 1]
    with pytest.raises(ConfigError, match="the classifier sees images of .4, 4, 1."):
        pipeline(run, classifier=write(tmp_path / "small", small))(3)


WRONG = (None, 1.5, float("nan"), -1, 10**30, True, "", "x", b"x", [None], [[]], {}, {"name": "diffusion_jax.files:whole"},
         object(), np.zeros((2, 2)), np.array(None), 1j)
TAKES = {                                             # a call, and what of `WRONG` is right there
    "request": (lambda pipe, v: pipe.start(v), (None,)),
    "num": (lambda pipe, v: pipe.start(3, num=v), ()),
    "seed": (lambda pipe, v: pipe.start(3, seed=v), ()),
    "label": (lambda pipe, v: pipe.start(Request(label=v)), (None,)),
    "low_res": (lambda pipe, v: pipe.start(Request(low_res=v)), (None,)),
    "embedding": (lambda pipe, v: pipe.start(Request(embedding=v)), (None,)),
    "every": (lambda pipe, v: pipe.stream(3, every=v), ()),
    "steps": (lambda pipe, v: pipe.using(steps=v), ()),
    "sampler": (lambda pipe, v: pipe.using(sampler=v), ()),
    "phi": (lambda pipe, v: pipe.using(phi=v), ()),
    "levels": (lambda pipe, v: pipe.using(levels=v), ()),
    "folder": (lambda pipe, v: pipeline(v), ()),
    "which": (lambda pipe, v: pipeline(pipe.run.folder, which=v), ()),
    "step": (lambda pipe, v: pipeline(pipe.run.folder, step=v), (None,)),
    "upsamplers": (lambda pipe, v: pipeline(pipe.run, upsamplers=v), (None,)),
    "weak": (lambda pipe, v: pipeline(pipe.run, weak=v), (None,)),
    "candidates": (lambda pipe, v: replace(pipe, candidates=v), ()),
    "values": (lambda pipe, v: pipe.edit.mix(3, 7, values=v), ()),
    "first": (lambda pipe, v: pipe.edit.mix(v, 17, values=[0.5]), ()),
    "images": (lambda pipe, v: pipe.edit.strength(v, 3, values=[0.5]), ()),
    "rects": (lambda pipe, v: pipe.edit.inpaint(np.zeros((1, 8, 8, 1), np.uint8), v, 3), ()),
    "rect": (lambda pipe, v: pipe.edit.inpaint(np.zeros((1, 8, 8, 1), np.uint8), [v], 3), ()),
    "side": (lambda pipe, v: pipe.edit.inpaint(np.zeros((1, 8, 8, 1), np.uint8), [[v, 0, 4, 4]], 3), ()),
}


@pytest.mark.parametrize("name", TAKES)
def test_values_of_another_type_are_one_line(pipe, name):
    call, right = TAKES[name]
    for value in WRONG:
        if any(value is one for one in right):
            continue
        with pytest.raises(ConfigError) as error:
            call(pipe, value)
        assert "\n" not in str(error.value)
