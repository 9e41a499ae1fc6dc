"""What pages leave out is filled from their data, and nothing else is touched."""
import numpy as np
import own_pictures as own
import pytest
from pages import page

from diffusion_jax.build import ConfigError
from diffusion_jax.runs.filled import check_parts, filled
from diffusion_jax.runs.pages import installed
from diffusion_jax.train.state import plain


def without(config, *places):
    """A page without some of its options."""
    for place in places:
        *sections, option = place.split(".")
        part = config
        for section in sections:
            part = part[int(section)] if isinstance(part, list) else part[section]
        del part[option]
    return config


def fails(self):
    raise AssertionError("read")


@pytest.mark.parametrize("name", sorted(name for name in installed() if name not in ("folder", "lineage")))
def test_a_whole_page_stays_and_its_data_are_not_read(name, monkeypatch):
    monkeypatch.setattr("diffusion_jax.runs.filled._Data._source", property(fails))
    monkeypatch.setattr("diffusion_jax.runs.filled._Data._decode", property(fails))
    for variant in ("", "tiny"):
        config = plain(page(name, variant))
        assert filled(config) == config


@pytest.mark.parametrize(("name", "places"), [
    ("digits", ("task.cond.num_classes",)),
    ("digits", ("task.cond.num_classes", "task.shape", "model.channels")),
    ("digits_edm2", ("task.cond.num_classes", "model.channels")),
    ("digits_glide", ("task.cond.parts.0.vocab", "task.cond.parts.0.context", "task.shape")),
    ("digits_dalle", ("model.text_length",)),
    ("digits_vae", ("task.shape",)),
])
def test_what_is_left_out_is_what_the_page_had(name, places):
    config = plain(page(name))
    assert filled(without(plain(page(name)), *places)) == config


@pytest.mark.parametrize("name", sorted(name for name in installed() if name not in ("folder", "lineage")))
def test_the_parts_of_every_page_are_right_and_no_data_are_read(name, monkeypatch):
    monkeypatch.setattr("diffusion_jax.runs.filled._Data._source", property(fails))
    check_parts(plain(page(name, "tiny")))


@pytest.mark.parametrize(("place", "value", "says"), [
    ("model.depht", 3, "did you mean 'depth'"), ("model.depth", -1, "depth of"), ("model.depth", "3", "whole number"),
    ("task.cond.wdth", 3, "did you mean 'width'"), ("data.test.splitt", "test", "did you mean 'split'"),
])
def test_a_part_that_cannot_be_made_is_refused_also_where_others_are_yet_to_be_filled(place, value, says):
    config = without(plain(page("digits")), "task.cond.num_classes", "task.shape")
    check_parts(config)
    *sections, option = place.split(".")
    part = config
    for section in sections:
        part = part[section]
    part[option] = value
    with pytest.raises(ConfigError, match=says):
        check_parts(config)


def test_the_page_itself_is_not_changed():
    config = without(plain(page("digits")), "task.cond.num_classes")
    filled(config)
    assert "num_classes" not in config["task"]["cond"]


def test_defaults_that_fit_stay_defaults():
    config = without(plain(page("cifar10_adm", "")), "model.channels")           # 3, as the pictures have
    assert "channels" not in filled(config)["model"]
    config["task"]["shape"] = [32, 32, 1]
    assert filled(config)["model"]["channels"] == 1


def test_labels_without_names_are_counted(tmp_path):
    np.savez(tmp_path / "x.npz", image=np.zeros((4, 8, 8, 1), np.uint8), label=np.array([0, 6, 2, 1]))
    config = without(plain(page("digits")), "task.cond.num_classes")
    config["data"]["train"] = dict(name="diffusion_jax.data.arrays:Arrays", path=str(tmp_path / "x.npz"))
    assert filled(config)["task"]["cond"]["num_classes"] == 7


def test_latents_have_the_shape_of_their_autoencoder(tmp_path):
    pictures = own.classes(tmp_path / "photos")
    source = dict(name="diffusion_jax.data.folder:Folder", path=str(pictures))
    config = without(plain(page("digits")), "task.shape", "task.cond.num_classes", "model.channels")
    config["data"] = dict(train=source, test=source, decode=dict(name="diffusion_jax.data.image:Decode", size=8))
    config |= {"first_stage": "runs/vae"}
    with pytest.raises(ConfigError, match="config.task lacks 'shape', .* .it is that of the latents of runs/vae"):
        filled(config)
    config["task"]["first_stage"] = own.CODER["task"] | {"model": own.CODER["model"]}
    made = filled(config)
    assert made["task"]["shape"] == [4, 4, 2] and made["model"]["channels"] == 2
    assert made["task"]["cond"]["num_classes"] == 3 and made["task"]["first_stage"] == config["task"]["first_stage"]
    own.latents(tmp_path / "latents")
    config["data"] = dict(train=dict(name="diffusion_jax.data.latents:Latents", path=str(tmp_path / "latents")), test={},
                          decode=dict(name="diffusion_jax.data.latents:Draw", path=str(tmp_path / "latents")))
    assert filled(config)["task"]["shape"] == [4, 4, 2]


@pytest.mark.parametrize(("places", "says"), [
    (("task.cond.num_classes",), "config.task.cond lacks 'num_classes', and the data do not say it .*names no classes"),
    (("task.shape",), "config.task lacks 'shape', and the data do not say it .*no such file or folder"),
])
def test_what_the_data_do_not_say_is_asked_for(tmp_path, places, says):
    own.loose(tmp_path / "loose")
    config = without(plain(page("digits")), *places)
    where = tmp_path / ("loose" if "num_classes" in places[0] else "nowhere")
    config["data"]["train"] = dict(name="diffusion_jax.data.folder:Folder", path=str(where))
    with pytest.raises(ConfigError, match=says) as error:
        filled(config)
    assert "\n" not in str(error.value)


def test_a_text_without_a_tokenizer_is_asked_for():
    config = without(plain(page("digits_glide")), "task.cond.parts.0.vocab", "data.decode.tokenizer")
    with pytest.raises(ConfigError, match="config.task.cond.parts.0 lacks 'vocab', .*data.decode has no tokenizer"):
        filled(config)
