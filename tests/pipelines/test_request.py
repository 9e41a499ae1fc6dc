"""What a person asks for: in one word or in several, and what is no request."""
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines.request import Batch, Helpers, Request, check_numbers, strengths


@pytest.mark.parametrize(("what", "prompts", "labels", "rows"), [
    (None, None, None, 1),
    ([], None, None, 1),
    ("a three", ("a three",), None, 1),
    (["a three", "a one"], ("a three", "a one"), None, 2),
    (3, None, (3,), 1),
    (0, None, (0,), 1),
    (np.int64(3), None, (3,), 1),
    ([1, 2, 3], None, (1, 2, 3), 3),
    (np.arange(4), None, (0, 1, 2, 3), 4),
    (("a three",), ("a three",), None, 1),
    (np.array(5), None, (5,), 1),
    (Request(prompt="a three", label=2), ("a three",), (2,), 1),
    (Request(prompt=["a three", "a one"], label=2), ("a three", "a one"), (2,), 2),
    (Request(label="3"), None, ("3",), 1),
    (Request(label=["3", 4]), None, ("3", 4), 2),
    (Request(label=np.int32(7)), None, (7,), 1),
], ids=str)
def test_a_request_of_one_word(what, prompts, labels, rows):
    request = Request.of(what)
    assert (request.prompts, request.labels, request.rows) == (prompts, labels, rows)
    assert Request.of(request) is request


@pytest.mark.parametrize("what", [3.5, True, [1, 2.0], ["a three", 3], [None], {"label": 3}, [[1, 2]], b"a three"], ids=str)
def test_what_is_no_request_is_one_line(what):
    with pytest.raises(ConfigError, match="ask for a text, a label, a list of either, or a Request: got") as error:
        Request.of(what)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("fields", "says"), [
    (dict(label=3.5), "label .* is a class by its number or its name"),
    (dict(label=True), "label .* is a class by its number or its name"),
    (dict(label=[1, 2.5]), "label .* is a class by its number or its name"),
    (dict(label=[]), "label"),
    (dict(prompt=3), "prompt .* is a text"),
    (dict(prompt=["a three", 3]), "prompt .* is a text"),
    (dict(prompt=[]), "prompt"),
    (dict(negative=["a one"]), "negative .* is a text"),
    (dict(original_size="1024"), "original_size .--original_size. is two whole numbers, 1024,768: got '1024'"),
    (dict(original_size=(0, 5)), "original_size .* 1"),
    (dict(crop=(1.5, 0)), "crop .* a whole number"),
    (dict(crop="a,b"), "crop .* a whole number"),
    (dict(crop=(1, 2, 3)), "crop .* is two whole numbers"),
    (dict(target_size=5), "target_size .* is two whole numbers"),
    (dict(label={"name": "diffusion_jax.files:whole"}), "label .* is a class by its number or its name"),
    (dict(label=[[1]]), "label .* is a class"),
    (dict(prompt={"a": 1}), "prompt .* is a text"),
    (dict(prompt="a", truncate=1), "truncate .* is True or False: got 1"),
    (dict(prompt="a", truncate="no"), "truncate .* is True or False"),
    (dict(low_res=5), "low_res .--low_res. are pictures, uint8"),
    (dict(low_res=["x.png"]), "low_res .* are pictures"),
    (dict(low_res=np.zeros((1, 8, 8, 1))), "low_res .* got float64 .1, 8, 8, 1."),
    (dict(complete=np.zeros((8, 8), np.uint8)), "complete .* got uint8 .8, 8."),
    (dict(embedding="x"), "embedding is an array of finite numbers"),
    (dict(embedding=np.zeros(6)), "embedding is an array .* got float64 .6,."),
    (dict(embedding=np.full((1, 6), np.nan)), "embedding is an array of finite numbers"),
    (dict(embedding=np.zeros((0, 6))), "embedding is an array"),
], ids=str)
def test_labels_and_texts_of_another_type_are_one_line(fields, says):
    with pytest.raises(ConfigError, match=says) as error:
        Request(**fields)
    assert "\n" not in str(error.value)


def test_prompts_and_labels_are_as_many_or_one():
    assert Request(prompt=["a", "b"], label=[1, 2]).rows == 2
    with pytest.raises(ConfigError, match="2 prompts and 3 labels: give as many of both, or one"):
        _ = Request(prompt=["a", "b"], label=[1, 2, 3]).rows


def test_numbers_of_a_call():
    check_numbers(1, 0)
    check_numbers(np.int64(3), np.uint32(2**32 - 1), 7)


@pytest.mark.parametrize(("numbers", "says"), [
    ((0, 0), "num is 1 ... 10000000, got 0"),
    ((-1, 0), "num is 1 ... 10000000, got -1"),
    ((10**12, 0), "num is 1 ... 10000000, got 1000000000000"),
    ((1.0, 0), "num is a whole number, 1 ... 10000000: got 1.0"),
    (("3", 0), "num is a whole number"),
    ((None, 0), "num is a whole number"),
    ((1, -1), "seed is 0 ... 4294967295, got -1"),
    ((1, 2**32), "seed is 0 ... 4294967295, got 4294967296"),
    ((1, 2**63), "seed is 0 ... 4294967295"),
    ((1, np.uint64(2**40)), "seed is 0 ... 4294967295"),
    ((1, 10**5000), "seed is 0 ... 4294967295"),
    ((1, True), "seed is a whole number"),
    ((1, float("nan")), "seed is a whole number"),
    ((1, "7"), "seed is a whole number"),
    ((1, 0, 0), "batch is 1 ... 10000000, got 0"),
    ((1, 0, None), "batch is a whole number"),
])
def test_numbers_that_are_none(numbers, says):
    with pytest.raises(ConfigError, match=says):
        check_numbers(*numbers)


@pytest.mark.parametrize(("group", "fields", "says"), [
    (Batch, dict(num=0), "num is 1 ... 10000000, got 0"),
    (Batch, dict(seed=2**32), "seed is 0 ... 4294967295"),
    (Batch, dict(seed=2**63), "seed is 0 ... 4294967295"),
    (Batch, dict(num=10**12), "num is 1 ... 10000000"),
    (Batch, dict(num="3"), "num is a whole number, got '3'"),
    (Batch, dict(num=True), "num is a whole number, got True"),
    (Batch, dict(num=2.5), "num is a whole number"),
    (Helpers, dict(weak=3), "weak is a text, got 3"),
    (Helpers, dict(prior_guidance=float("inf")), "prior_guidance is inf, which is not finite"),
    (Helpers, dict(weak_step=2), "--weak_step is a step of the run --weak"),
    (Helpers, dict(candidates=0), "candidates is 1 or more"),
])
def test_groups_of_options_are_checked_at_once(group, fields, says):
    with pytest.raises(ConfigError, match=says):
        group(**fields)


def test_loras_are_files_with_strengths():
    assert strengths(()) == {}
    assert strengths(("a.safetensors=0.7", "b=x.safetensors=-1", "runs/c")) == {
        "a.safetensors": 0.7, "b=x.safetensors": -1.0, "runs/c": 1.0}
    for texts, says in ((("a=strong",), "the strength of --lora a=strong is a number"), (("=1",), "names no file"),
                        (("a=1", "a=0.5"), "names a again: write --lora x.safetensors=0.7, once each"),
                        (("a=inf",), "not finite")):
        with pytest.raises(ConfigError, match=says):
            strengths(texts)
