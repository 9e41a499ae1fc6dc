"""Conditioners: the table, its null row, and what is refused."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.cond import Joint, Label, LowRes, Nothing

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


def test_an_upsampler_sees_means_over_boxes():
    image = jnp.arange(16.0).reshape(1, 4, 4, 1) / 16
    raw = LowRes(2).prepare({"image": image}, jax.random.key(0))
    np.testing.assert_allclose(raw["low_res"][0, :, :, 0], np.array([[2.5, 4.5], [10.5, 12.5]]) / 16)
    np.testing.assert_array_equal(LowRes(2).apply({}, raw)["cat"], raw["low_res"])
    given = LowRes(2).prepare({"low_res": jnp.ones((1, 2, 2, 1))}, jax.random.key(0))
    np.testing.assert_array_equal(given["low_res"], 1)


def test_augmentation_keeps_the_variance_and_tells_its_level():
    image = jax.random.normal(jax.random.key(1), (2000, 4, 4, 1))
    cond = LowRes(1, augment=0.5, width=8)
    raw = cond.prepare({"image": image}, jax.random.key(0))
    assert 0 <= raw["level"].min() < 0.01 and 0.49 < raw["level"].max() <= 0.5
    np.testing.assert_allclose(jnp.var(raw["low_res"]), 1, rtol=0.05)             # the cosine process preserves it
    correlation = jnp.mean(raw["low_res"] * image, axis=(1, 2, 3))
    np.testing.assert_allclose(jnp.mean(correlation / jnp.cos(raw["level"] * jnp.pi / 2)), 1, rtol=0.05)
    clean = cond.prepare({"image": image}, jax.random.key(0), level=0.0)
    np.testing.assert_allclose(clean["low_res"], image, atol=1e-6)
    variables = cond.init(jax.random.key(2), raw)
    vec = cond.apply(variables, raw)["vec"]
    assert vec.shape == (2000, 8) and float(jnp.abs(vec[0] - vec[1]).max()) > 0


def test_joint_conditions_add_up():
    label, small = Label(3, 8), LowRes(1, augment=0.5, width=8)
    both = Joint((label, small))
    assert (both.keys, both.derived, both.droppable, both.num_classes) == (("label", "low_res"), ("low_res",), ("label",), 3)
    raw = both.prepare(RAW, jax.random.key(0))
    variables = both.init(jax.random.key(1), raw)
    cond = both.apply(variables, raw)
    parts = [part.apply({"params": variables["params"][f"parts_{i}"]}, raw)["vec"] for i, part in enumerate((label, small))]
    np.testing.assert_allclose(cond["vec"], sum(parts), rtol=1e-6)
    assert set(cond) == {"vec", "cat"}
    null = both.null(raw)
    np.testing.assert_array_equal(null["label"], 3)
    np.testing.assert_array_equal(null["low_res"], raw["low_res"])
    with pytest.raises(ConfigError, match="label 5 is outside"):
        both.check({**raw, "label": np.array([5])})
    with pytest.raises(ConfigError, match="low_res is a batch of images"):
        both.check({**raw, "low_res": np.full((1, 2, 2, 1), 9.0)})
