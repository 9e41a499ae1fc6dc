"""What a person asks for: in one word or in several, and what is no request."""
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines.request import Batch, Helpers, Request, check_numbers


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
    ((0, 0), "num is a whole number, at least 1: got 0"),
    ((1.0, 0), "num is a whole number, at least 1: got 1.0"),
    ((1, -1), "seed is a whole number, 0 ... 2.32 - 1: got -1"),
    ((1, 2**32), "seed is a whole number"),
    ((1, True), "seed is a whole number"),
    ((1, 0, 0), "batch is a whole number, at least 1: got 0"),
])
def test_numbers_that_are_none(numbers, says):
    with pytest.raises(ConfigError, match=says):
        check_numbers(*numbers)


@pytest.mark.parametrize(("group", "fields", "says"), [
    (Batch, dict(num=0), "num is 1 or more"),
    (Batch, dict(seed=2**32), "seed is 0 ... 4294967295"),
    (Helpers, dict(weak_step=2), "--weak_step is a step of the run --weak"),
    (Helpers, dict(candidates=0), "candidates is 1 or more"),
])
def test_groups_of_options_are_checked_at_once(group, fields, says):
    with pytest.raises(ConfigError, match=says):
        group(**fields)
