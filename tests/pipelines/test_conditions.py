"""From what a person asks for to what a model is conditioned on."""
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.data.digits import Digits
from diffusion_jax.models.cond import Nothing
from diffusion_jax.pipelines.conditions import conditions, conditions_of, held_out_conditions, pictures_of, request_of
from diffusion_jax.pipelines.request import Request
from diffusion_jax.runs.folder import Run
from diffusion_jax.tasks.autoregressive import Autoregressive
from diffusion_jax.train.state import plain
from pipelines.test_tokens import FIRST, NET
from pipelines.toy_task import CLASSES, LABEL, LOW_RES, TEXT, classifier_page, make, model_of, page
from pipelines.unclip_task import DECODER, EMBEDDER

SHARP = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1)


def run_of(config, data=True):
    config = plain(config)
    if not data:
        config["data"].pop("train")
        config["data"].pop("test")
    return Run("runs/x", 0, "params", config, model_of(config))


RUNS = SimpleNamespace(label=run_of(page(LABEL)), text=run_of(page(TEXT)), upsampler=run_of(page(LABEL, LOW_RES, side=16)),
                       both=run_of(page(LABEL, TEXT)), classifier=run_of(classifier_page()), bare=run_of(page(LABEL), data=False),
                       clip=SimpleNamespace(task=EMBEDDER.clip), decoder=SimpleNamespace(task=DECODER, class_names=("dog",)),
                       tokens=SimpleNamespace(task=Autoregressive(NET, FIRST), class_names=("dog",)))


# Labels ---------------------------------------------------------------------------------------------------------------------


def test_labels_are_balanced_unless_one_is_asked_for():
    task = make()
    np.testing.assert_array_equal(conditions(task, 7)["label"], [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(conditions(task, 4, np.full(4, 2))["label"], [2, 2, 2, 2])
    assert conditions(task, 1)["label"].dtype == np.int32


@pytest.mark.parametrize("label", [-1, CLASSES, CLASSES + 1])
def test_labels_that_do_not_exist_are_refused(label):
    with pytest.raises(ConfigError, match=f"label {label} is outside 0 ... 2"):
        conditions(make(), 2, np.array([1, label]))


@pytest.mark.parametrize(("label", "want"), [
    (3, [3, 3, 3, 3]), ("3", [3, 3, 3, 3]), ([1, "2"], [1, 1, 2, 2]), (np.int64(9), [9] * 4), ([4, 3, 2, 1], [4, 3, 2, 1]),
], ids=str)
def test_labels_by_number_and_by_name_in_the_order_of_the_request(label, want):
    raw = conditions_of(RUNS.label, Request(label=label), 4)
    np.testing.assert_array_equal(raw["label"], want)


def test_a_class_goes_by_the_name_that_its_data_has(monkeypatch):
    monkeypatch.setattr(Digits, "names", property(lambda _: ("cat", "dog", *"23456789")))
    np.testing.assert_array_equal(conditions_of(RUNS.label, Request(label=["dog", "cat"]), 4)["label"], [1, 1, 0, 0])
    with pytest.raises(ConfigError, match="unknown class 'dgo': did you mean 'dog'"):
        conditions_of(RUNS.label, Request(label="dgo"), 1)
    with pytest.raises(ConfigError, match="this model's classes have no names"):
        conditions_of(RUNS.bare, Request(label="dog"), 1)


@pytest.mark.parametrize(("stored", "asked"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_class_is_the_same_whether_its_accents_stand_apart_or_not(stored, asked):
    run = RUNS.label._replace(classes=("lily", unicodedata.normalize(stored, "rosé")))
    assert conditions_of(run, Request(label=unicodedata.normalize(asked, "rosé")), 1)["label"].tolist() == [1]
    with pytest.raises(ConfigError, match="unknown class 'rose'"):
        conditions_of(run, Request(label="rose"), 1)


def test_a_class_that_is_called_by_a_number_goes_by_its_name():
    """Folders 1, 10 and 2 sort like this; a number of Python's is the class's own."""
    run = RUNS.label._replace(classes=("1", "10", "2"))
    labels = ["10", "2", 2, "1", "0"]
    np.testing.assert_array_equal(conditions_of(run, Request(label=labels), 5)["label"], [1, 2, 2, 0, 0])


def test_names_come_with_the_checkpoint_and_need_no_data():
    run = RUNS.bare._replace(classes=("cat", "dog"))
    np.testing.assert_array_equal(conditions_of(run, Request(label="dog"), 2)["label"], [1, 1])
    with pytest.raises(ConfigError, match="unknown class 'dgo': did you mean 'dog'"):
        conditions_of(run, Request(label="dgo"), 1)


def test_a_text_is_a_class_where_nothing_reads_texts():
    named = RUNS.label._replace(classes=("cat", "dog"))
    assert request_of("dog", named).labels == ("dog",) and request_of(["dog", "cat"], named).labels == ("dog", "cat")
    texts = ((RUNS.text, ()), (RUNS.both, ()), (RUNS.bare, ()), (named, (None, RUNS.clip)), (RUNS.tokens, ()), (RUNS.decoder, ()))
    for run, helpers in texts:
        request = request_of("dog", run, *helpers)
        assert request.prompts == ("dog",) and request.label is None
    # Who says that it is a prompt is told that there is none.
    with pytest.raises(ConfigError, match="reads no text"):
        conditions_of(named, request_of(Request(prompt="dog"), named), 1)
    assert request_of(3, named).labels == (3,) and request_of(None, named).labels is None


@pytest.mark.parametrize("label", [-1, "-1", 10, "10"])
def test_a_label_out_of_range_is_refused_by_the_run_too(label):
    with pytest.raises(ConfigError, match=f"label {label} is outside 0 ... 9"):
        conditions_of(RUNS.label, Request(label=label), 2)


# Texts ----------------------------------------------------------------------------------------------------------------------


def test_prompts_become_tokens_in_their_order():
    raw = conditions_of(RUNS.text, Request(prompt=["a three", "nine"], negative="a one"), 4)
    np.testing.assert_array_equal(raw["tokens"], [[1, 6, 0], [1, 6, 0], [12, 0, 0], [12, 0, 0]])     # a handwritten zero one ...
    np.testing.assert_array_equal(raw["negative"], [[1, 4, 0]] * 4)


def test_without_a_prompt_a_model_of_texts_takes_held_out_captions():
    raw = conditions_of(RUNS.text, Request(), 3)
    captions = [Digits("test")[i]["caption"] for i in (0, 99, 198)]
    np.testing.assert_array_equal(raw["tokens"], RUNS.text.tokens(captions))


@pytest.mark.parametrize(("name", "request_", "says"), [
    ("label", Request(prompt="a three"), "reads no text: leave prompt .--prompt. out, or give a CLIP"),
    ("label", Request(negative="a three"), "negative .--negative. goes with a prompt"),
    ("text", Request(negative="a three"), "negative .--negative. goes with a prompt"),
    ("text", Request(label=3), "this model takes no label: leave label"),
    ("text", Request(prompt="a thre"), "unknown word 'thre': did you mean 'three'"),
    ("text", Request(prompt="a a a three"), "tokens"),
    ("text", Request(truncate=True), "truncate .--truncate. cuts prompts: give a prompt"),
    ("label", Request(embedding=np.zeros((1, 6))), "a prior .--prior. is for a decoder of unCLIP"),
    ("label", Request(label="--3"), "unknown class '--3'"),
    ("label", Request(label="\u0663"), "unknown class"),
    ("label", Request(label="9" * 40), "unknown class"),
    ("label", Request(label=[3, -1]), "label -1 is outside"),
    ("label", Request(low_res=SHARP), "low_res .--low_res. is for an upsampler"),
    ("upsampler", Request(), "conditioned on 'low_res': give low_res .--low_res."),
    ("upsampler", Request(low_res=np.zeros((4, 4, 4, 1), np.uint8)), r"trained on low_res of \(8, 8, 1\), not \(4, 4, 1\)"),
    ("upsampler", Request(low_res=SHARP), "4 images need as many of 'low_res', there are 2: lower num"),
], ids=str)
def test_what_a_model_cannot_read_is_one_line(name, request_, says):
    with pytest.raises(ConfigError, match=says) as error:
        conditions_of(getattr(RUNS, name), request_, 4)
    assert "\n" not in str(error.value)


def test_prompts_are_cut_where_one_says_so():
    raw = conditions_of(RUNS.text, Request(prompt="a a a three", truncate=True), 1)
    np.testing.assert_array_equal(raw["tokens"], [[1, 1, 1]])


def test_a_classifier_needs_labels_of_a_model_that_has_none():
    assert conditions(make(cond=Nothing()), 3) == {}
    raw = conditions(make(cond=Nothing()), 3, guide=SimpleNamespace(target="label", num_classes=2))
    np.testing.assert_array_equal(raw["label"], [0, 1, 0])
    with pytest.raises(ConfigError, match="the classifier knows 2 classes, the model 3"):
        conditions(make(), 3, guide=SimpleNamespace(target="label", num_classes=2))
    with pytest.raises(ConfigError, match="a CLIP guides towards a text: give a prompt"):
        conditions(make(), 3, guide=SimpleNamespace(target="clip_text"))


def test_a_model_reads_nothing_that_is_not_its_own():
    raw = conditions(make(), 2, raw={"tokens": np.zeros((2, 3)), "label": np.array([2, 0])})
    assert set(raw) == {"label"} and raw["label"].tolist() == [2, 0]


# Pictures -------------------------------------------------------------------------------------------------------------------


def test_small_images_bring_their_labels(tmp_path):
    np.savez(tmp_path / "small.npz", arr_0=SHARP, arr_1=np.array([7, 2]))
    raw = conditions_of(RUNS.upsampler, Request(low_res=str(tmp_path / "small.npz")), 2)
    np.testing.assert_allclose(raw["low_res"], SHARP / 127.5 - 1, atol=1e-6)
    assert raw["label"].tolist() == [7, 2]
    assert conditions_of(RUNS.upsampler, Request(low_res=SHARP), 2)["label"].tolist() == [0, 1]


def test_pictures_take_the_channels_of_the_model_and_keep_their_size():
    np.testing.assert_allclose(pictures_of(SHARP, (8, 8, 3), "images"), np.repeat(SHARP / 127.5 - 1, 3, axis=-1), atol=1e-6)
    assert pictures_of(SHARP[0], (8, 8, 1), "images").shape == (1, 8, 8, 1)
    with pytest.raises(ConfigError, match=r"--images has pictures of \(8, 8, 1\), this model makes \(4, 4, 1\)"):
        pictures_of(SHARP, (4, 4, 1), "images")


def test_an_upsampler_is_measured_under_held_out_images_made_small():
    raw = held_out_conditions(RUNS.upsampler, 5)
    source = Digits("test")
    rows = [source[i * 297 // 5] for i in range(5)]
    assert raw["label"].tolist() == [row["label"] for row in rows]
    assert raw["low_res"].shape == (5, 8, 8, 1)
    np.testing.assert_allclose(raw["low_res"].mean((1, 2, 3)), [row["image"].mean() / 127.5 - 1 for row in rows], atol=0.02)


def test_what_a_model_is_measured_under_comes_of_its_data():
    assert held_out_conditions(RUNS.label, 3) == {} and held_out_conditions(RUNS.bare, 3) == {}
    assert held_out_conditions(RUNS.text, 3)["tokens"].shape == (3, 3)
    bare = run_of(page(LABEL, LOW_RES, side=16), data=False)
    with pytest.raises(ConfigError, match="this model came without data to make its conditions of"):
        held_out_conditions(bare, 3)
