"""The golden harness itself: it must see every kind of miss."""
from pathlib import Path

import golden_case
import numpy as np
import pytest
from golden_case import Case

RULE = {"seed": 5, "tensors": {"w": {"shape": [2, 3], "mean": 0.5, "std": 2.0}, "tied": {"same_as": "w"}}}


def case(want, outputs, tolerance):
    return Case({"outputs": outputs, "tolerance": tolerance}, {}, {}, {}, want, Path("x.json"))


X = np.arange(12, dtype=np.float32).reshape(3, 4)
FLOAT = case({"x": X}, {"x": {"shape": [3, 4]}}, {"rtol": 0.0, "atol": 9.0, "per_output": {"x": {"rtol": 0.0, "atol": 0.1}}})
AXIS = case({"x": X}, {"x": {"shape": [3, 4]}}, {"per_output": {"x": {"rtol": 0.0, "atol": 9.0, "atol_axis0": [0.1, 1.0, 9.0]}}})
STRIDE = case({"x": X.reshape(-1)[::5]}, {"x": {"shape": [3, 4], "stride": 5}}, {"rtol": 0.0, "atol": 0.1})
INTEGER = case({"x": X.astype(np.int64)}, {"x": {"shape": [3, 4]}}, {"rtol": 9.0, "atol": 9.0})
BOOL = case({"x": X > 3}, {"x": {"shape": [3, 4]}}, {"rtol": 9.0, "atol": 9.0})


def moved(by, where):
    out = X.astype(np.float64)
    out[where] += by
    return out


@pytest.mark.parametrize("given, found, good", [
    (FLOAT, X, True),
    (FLOAT, moved(0.09, (1, 1)), True),
    (FLOAT, moved(0.11, (1, 1)), False),
    (FLOAT, moved(np.nan, (1, 1)), False),
    (FLOAT, X.T, False),
    (AXIS, moved(0.5, (1, 0)), True),
    (AXIS, moved(0.5, (0, 0)), False),
    (STRIDE, moved(0.5, (0, 1)), True),
    (STRIDE, moved(0.5, (1, 1)), False),
    (STRIDE, X.reshape(-1)[::5], False),
    (INTEGER, X.astype(np.int32), True),
    (INTEGER, moved(1, (0, 0)), False),
    (BOOL, X > 3, True),
    (BOOL, X > 4, False),
])
def test_compare(given, found, good):
    assert (golden_case.compare(given, {"x": found}) == []) is good


def test_a_missing_output_is_a_miss():
    assert golden_case.compare(FLOAT, {"y": X}) == ["x: not computed"]


def test_weights_follow_the_rule():
    w = golden_case._weights({"weights": RULE}, {"stored": X})
    assert w["tied"] is w["w"] and w["stored"] is X and w["w"].dtype == np.float32
    # crc32 of "5/w" is 0x019C229B
    np.testing.assert_array_equal(w["w"], np.float32(0.5 + 2.0 * np.random.RandomState(0x019C229B).standard_normal((2, 3))))
