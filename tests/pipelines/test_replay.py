"""Pictures made again from what their files say."""
import shutil
from dataclasses import replace

import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax.build import ConfigError
from diffusion_jax.data.pictures import save_npz, save_png
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.pipelines.replay import reopened
from diffusion_jax.pipelines.request import Request
from diffusion_jax.runs.folder import save_start
from pipelines.toy_task import LABEL, model_of, page, write


@pytest.mark.parametrize("name", ["x.png", "x.npz", "x/", "x/000002.png"])
def test_what_is_read_back_makes_the_same_pictures(texts, tmp_path, name):
    texts.save(f"{tmp_path}/{name.removesuffix('000002.png')}")
    replay = dj.read_request(tmp_path / name)
    assert (replay.request.prompts, replay.request.negative) == (("a three", "a one"), "eight")
    assert replay.seed == 11 and replay.index == {"x/000002.png": 2, "x/": 0}.get(name)
    np.testing.assert_array_equal(replay.make().images, texts.images)


def test_label_0_is_read_back(zeros, tmp_path):
    replay = dj.read_request(zeros.save(tmp_path / "x.png"))
    assert replay.request.labels == (0,)
    np.testing.assert_array_equal(replay.make().images, zeros.images)


@pytest.mark.parametrize("name", ["x.png", "x.npz", "x/", "x/000001_10.png"])
def test_a_name_is_read_back_where_the_data_are_gone(tmp_path, name):
    """Of a class that is called by another's number, too."""
    config = page(LABEL) | {"data": {"decode": page(LABEL)["data"]["decode"]}}
    save_start(tmp_path / "run", config, model_of(page(LABEL)).params, data={"classes": ["1", "10", "2"]})
    made = pipeline(tmp_path / "run")("10", num=2)
    assert made.labels.tolist() == [1, 1]
    made.save(f"{tmp_path}/{name.removesuffix('000001_10.png')}")
    replay = dj.read_request(tmp_path / name)
    assert replay.request.labels == ("10",)
    np.testing.assert_array_equal(replay.make().images, made.images)


def test_what_helped_is_read_back(folders, tmp_path):
    pipe = pipeline(folders.label, upsamplers=[folders.upsampler], classifier=folders.classifier, weak=folders.other)
    made = pipe.using(guidance=2.0, classifier_scale=2000.0)([3, 4], num=1, seed=2)
    replay = dj.read_request(made.save(tmp_path / "x.npz"))
    assert {name: value for name, value in replay.origin.helpers.items() if name != "upsamplers"} == {
        "classifier": pipe.guide.identity, "weak": pipe.weak.identity}
    np.testing.assert_array_equal(replay.make().images, made.images)
    ranked = pipeline(folders.label, rerank=folders.classifier, candidates=3)([3, 4], num=2, seed=2)
    again = dj.read_request(ranked.save(tmp_path / "y.png")).make()
    np.testing.assert_array_equal(again.images, ranked.images)


def test_how_an_upsampler_samples_is_read_back(folders, tmp_path):
    pipe = pipeline(folders.label, upsamplers=[folders.upsampler])
    other = replace(pipe, upsamplers=(pipe.upsamplers[0].using(steps=3, guidance=4.0),))
    made = other(3, num=2)
    assert (made.images != pipe(3, num=2).images).any()
    np.testing.assert_array_equal(dj.read_request(made.save(tmp_path / "x.png")).make().images, made.images)


def test_small_images_of_a_file_are_read_again(folders, zeros, tmp_path):
    small = zeros.save(tmp_path / "small.npz")
    made = pipeline(folders.upsampler)(Request(low_res=small), num=2)
    np.testing.assert_array_equal(dj.read_request(made.save(tmp_path / "x.png")).make().images, made.images)
    array = pipeline(folders.upsampler)(Request(low_res=zeros.images), num=2)
    with pytest.raises(ConfigError, match="was made from an array, low_res, which no file holds"):
        dj.read_request(array.save(tmp_path / "y.png"))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_other_small_images_under_the_same_name_are_refused(folders, zeros, tmp_path, kind):
    place = tmp_path / ("small.npz" if kind == "file" else "small/")
    small = zeros.save(f"{place}/" if kind == "folder" else place)
    replay = dj.read_request(pipeline(folders.upsampler)(Request(low_res=small), num=2).save(tmp_path / "x.png"))
    replay.make()
    if kind == "file":
        save_npz(place, 255 - zeros.images)
    else:
        save_png(next(place.glob("*.png")), 255 - zeros.images[0])
    with pytest.raises(ConfigError, match="small.* .low_res. holds other pictures than those"):
        replay.make()
    shutil.rmtree(place) if kind == "folder" else place.unlink()
    with pytest.raises(ConfigError, match="or none: put them back"):
        replay.make()


def test_other_weights_in_the_folder_are_refused(folders, tmp_path):
    run = shutil.copytree(folders.label, tmp_path / "run")
    picture = pipeline(run)(3).save(tmp_path / "x.png")
    replay = dj.read_request(picture)
    replay.pipeline()
    shutil.rmtree(run)
    write(run, page(LABEL), seed=2)
    with pytest.raises(ConfigError, match="run holds other weights at step 0 than those that made these pictures"):
        replay.make()
    shutil.rmtree(run)
    with pytest.raises(ConfigError, match="there is no folder"):
        replay.make()


def test_the_step_that_made_them_is_taken_not_the_newest(folders, tmp_path):
    run = write(tmp_path / "run", page(LABEL), step=1)
    made = pipeline(run)(3, num=2)
    picture = made.save(tmp_path / "x.png")
    save_start(tmp_path / "later", page(LABEL), model_of(page(LABEL), 5).params, 2)
    shutil.copytree(tmp_path / "later" / "checkpoints" / "2", run / "checkpoints" / "2")
    assert pipeline(run).run.step == 2
    np.testing.assert_array_equal(dj.read_request(picture).make().images, made.images)


META = {"request": {"label": [3]}, "num": 1, "seed": 0, "batch": 4, "recipe": {}, "helpers": {},
        "run": {"run": "nowhere", "which": "ema", "step": 0, "digest": 1}}


@pytest.mark.parametrize("meta", [
    {}, {**META, "request": 3}, {**META, "request": {"labl": 3}}, {**META, "request": {"label": [1.5]}}, {**META, "num": "many"},
    {**META, "recipe": 7}, {name: value for name, value in META.items() if name != "seed"},
    {**META, "num": 1.5}, {**META, "num": 0}, {**META, "num": 10**12}, {**META, "num": True}, {**META, "num": None},
    {**META, "seed": 2**32}, {**META, "seed": 2**63}, {**META, "seed": -1}, {**META, "seed": "7"}, {**META, "seed": [1]},
    {**META, "batch": 0}, {**META, "batch": "4"}, {**META, "index": "../../x"}, {**META, "index": -1}, {**META, "rounding": "up"},
    {**META, "rounding": ["nearest"]}, {**META, "name": "diffusion_jax.files:whole"}, {**META, "helpers": "x"},
    {**META, "run": 3}, {**META, "contents": 3}, {**META, "contents": {"truncate": ""}},
    {**META, "request": {"label": {"name": "diffusion_jax.files:whole", "path": "x"}}}, {**META, "request": {"prompt": 3}},
    {**META, "request": {"low_res": 3}}, {**META, "request": {"truncate": "yes"}}, {**META, "request": ["label"]},
    {**META, "request": {"name": "diffusion_jax.files:whole"}}], ids=lambda meta: str(meta)[:90])
def test_files_that_say_something_else_are_one_line(meta, tmp_path):
    save_npz(tmp_path / "x.npz", np.zeros((1, 8, 8, 1), np.uint8), meta=meta)
    with pytest.raises(ConfigError, match="says nothing of how it was made that reads") as error:
        dj.read_request(tmp_path / "x.npz")
    assert "\n" not in str(error.value)


def test_files_that_say_nothing_are_one_line(tmp_path):
    save_png(tmp_path / "x.png", np.zeros((8, 8, 1), np.uint8))
    with pytest.raises(ConfigError, match="does not say how it was made"):
        dj.read_request(tmp_path / "x.png")


@pytest.mark.parametrize("change", [{"run": {}}, {"recipe": {"stepps": 3}}, {"recipe": {"steps": -4}}, {"helpers": {"weak": 3}},
                                    {"helpers": {"prior": {}}}, {"helpers": {"upsamplers": [{}]}}, {"recipe": {"steps": [5]}},
                                    {"recipe": {"guidance": "3"}}, {"recipe": {"sampler": {"name": "diffusion_jax.files:whole"}}},
                                    {"recipe": {"name": "diffusion_jax.files:whole"}}, {"recipe": {1: 2}},
                                    {"helpers": {"upsamplers": "x"}}, {"helpers": {"upsamplers": 3}}, {"helpers": {"prior": [1]}},
                                    {"helpers": {"prior": "../../x"}}, {"helpers": {"candidates": "3"}},
                                    {"helpers": {"candidates": 2}}, {"helpers": {"clasifier": {}}}, {"helpers": {"rerank": "x"}}],
                         ids=str)
def test_origins_that_make_no_sense_are_one_line(zeros, change):
    """What a file says is input from elsewhere."""
    origin = zeros.origin._replace(**change)
    with pytest.raises(ConfigError) as error:
        reopened(origin)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [
    {"run": 3}, {"run": None}, {"run": {"name": "diffusion_jax.files:whole"}}, {"run": "../../x"}, {"run": ""}, {"run": "gs://x/y"},
    {"which": "../../x"}, {"which": 3}, {"step": "../../x"}, {"step": -1}, {"step": 1.0}, {"step": True}, {"step": 10**30},
    {"digest": "1"}, {"digest": 1}], ids=str)
def test_a_run_that_a_file_names_is_opened_or_refused(zeros, change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        reopened(zeros.origin._replace(run=dict(zeros.origin.run) | change))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", [None, 5, ["x.png"], "~nobody-of-that-name/x.png"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ConfigError, match="is no path"):
        dj.read_request(path)
