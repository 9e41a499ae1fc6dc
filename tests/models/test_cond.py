"""Conditioners: the table, its null row, and what is refused."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.cond import Label, Nothing

RAW = {"label": jnp.array([0, 2, 1]), "image": jnp.zeros((3, 2, 2, 1))}


def test_label_is_a_row_of_the_table():
    cond = Label(3, 4)
    variables = cond.init(jax.random.key(0), RAW)
    table = variables["params"]["table"]
    assert table.shape == (4, 4)
    np.testing.assert_array_equal(cond.apply(variables, RAW)["vec"], np.asarray(table)[[0, 2, 1]])


def test_null_is_the_last_row_and_leaves_the_rest():
    cond = Label(3, 4)
    null = cond.null(RAW)
    np.testing.assert_array_equal(null["label"], [3, 3, 3])
    assert null["image"] is RAW["image"] and null["label"].dtype == RAW["label"].dtype
    variables = cond.init(jax.random.key(0), RAW)
    np.testing.assert_array_equal(cond.apply(variables, null)["vec"], np.asarray(variables["params"]["table"])[[3, 3, 3]])


def test_no_null_row_no_null():
    cond = Label(3, 4, null_row=False)
    assert cond.init(jax.random.key(0), RAW)["params"]["table"].shape == (3, 4)
    with pytest.raises(ConfigError, match="null_row=True"):
        cond.null(RAW)


def test_a_label_beyond_the_table_is_loud_under_jit():
    cond = Label(3, 4)
    vec = jax.jit(cond.apply)(cond.init(jax.random.key(0), RAW), {"label": jnp.array([1, 4])})["vec"]
    assert np.isfinite(vec[0]).all() and np.isnan(vec[1]).all()


@pytest.mark.parametrize("label, fine", [([0, 2], True), ([3], False), ([-1, 0], False), ([], True)])
def test_check_refuses_labels_outside(label, fine):
    raw = {"label": np.array(label, np.int32)}
    if fine:
        Label(3, 4).check(raw)
    else:
        with pytest.raises(ConfigError, match=r"outside 0 \.\.\. 2"):
            Label(3, 4).check(raw)


def test_table_starts_at_two_hundredths():
    table = Label(1000, 64).init(jax.random.key(0), RAW)["params"]["table"]
    assert abs(float(jnp.std(table)) - 0.02) < 2e-4


def test_nothing_is_empty():
    cond = Nothing()
    assert cond.init(jax.random.key(0), RAW) == {} and cond.apply({}, RAW) == {}
    assert cond.null(RAW) is RAW and cond.keys == ()
    cond.check(RAW)


def test_keys_name_what_is_read():
    assert Label(3, 4).keys == ("label",)
