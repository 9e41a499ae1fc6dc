"""Conversion rules: layouts against the operations they stand for, and every way in which weights may not fit."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.pretrained.rules import (
    CONV,
    PATCH,
    POINT,
    ROW,
    SAME,
    TRANSPOSE,
    UNBATCHED,
    Constant,
    Rule,
    batch_norm,
    convert,
    layer,
    norm,
    revert,
    structs,
)

RNG = np.random.RandomState(0)
RULES = [
    Rule(r"layers\.(\d+)\.weight", r"model/layer_\1/kernel", TRANSPOSE),
    Rule(r"layers\.(\d+)\.bias", r"model/layer_\1/bias"),
    Constant(r"table", lambda shape: np.arange(np.prod(shape), dtype=np.float64).reshape(shape)),
]
STATE = {
    "layers.0.weight": RNG.randn(3, 2).astype(np.float32), "layers.0.bias": RNG.randn(3).astype(np.float32),
    "layers.1.weight": RNG.randn(4, 3).astype(np.float16), "table": np.arange(6.0).reshape(2, 3),
}
TARGET = {"model": {
    "layer_0": {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32), "bias": jax.ShapeDtypeStruct((3,), jnp.float32)},
    "layer_1": {"kernel": jax.ShapeDtypeStruct((3, 4), jnp.float32)},
}}


def test_converts_into_the_types_of_the_target_and_back():
    params = convert(STATE, RULES, TARGET)
    np.testing.assert_array_equal(params["model"]["layer_0"]["kernel"], STATE["layers.0.weight"].T)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    back = revert(params, RULES, {key: value.shape for key, value in STATE.items()})
    assert back.keys() == STATE.keys()
    for key, value in STATE.items():
        np.testing.assert_array_equal(back[key], value)


def test_shapes_alone_go_the_same_way():
    structs = {key: jax.ShapeDtypeStruct(value.shape, value.dtype) for key, value in STATE.items()}
    params = jax.eval_shape(lambda state: convert(state, RULES, TARGET), structs)
    assert jax.tree.all(jax.tree.map(lambda got, want: (got.shape, got.dtype) == (want.shape, want.dtype), params, TARGET))


@pytest.mark.parametrize("change, message", [
    ({"head.weight": np.zeros(2)}, "left over: head.weight"),
    ({"layers.2.weight": np.zeros((2, 2))}, "left over: layers.2.weight"),
    ({"layers.0.bias": None}, "missing: model/layer_0/bias"),
    ({"layers.0.bias": np.zeros(4)}, r"wrong shape: layers.0.bias \(4,\) does not give model/layer_0/bias \(3,\)"),
    ({"table": np.arange(6.0)[::-1].reshape(2, 3)}, "wrong values: table is not the constant"),
])
def test_refuses_what_does_not_fit(change, message):
    state = {key: value for key, value in (STATE | change).items() if value is not None}
    with pytest.raises(ConfigError, match=message) as error:
        convert(state, RULES, TARGET)
    assert "\n" not in str(error.value)


def test_shape_mismatches_show_on_shapes_too():
    structs = {key: jax.ShapeDtypeStruct(value.shape, value.dtype) for key, value in STATE.items()}
    structs["layers.0.weight"] = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    with pytest.raises(ConfigError, match="wrong shape: layers.0.weight"):
        jax.eval_shape(lambda state: convert(state, RULES, TARGET), structs)


def test_a_layout_that_cannot_apply_is_a_wrong_shape():
    target = {"w": jax.ShapeDtypeStruct((12, 6), jnp.float32)}
    with pytest.raises(ConfigError, match=r"wrong shape: conv \(6, 12\) does not give w \(12, 6\)"):
        convert({"conv": np.zeros((6, 12))}, [Rule("conv", "w", PATCH)], target)


def test_many_problems_stay_one_line():
    with pytest.raises(ConfigError, match="and 16 more") as error:
        convert(STATE | {f"x{i}": np.zeros(1) for i in range(20)}, RULES, TARGET)
    assert len(str(error.value)) < 300


def test_one_key_one_rule_and_one_path_one_key():
    with pytest.raises(ConfigError, match=r"2 rules match the key 'layers.0.weight'"):
        convert(STATE, [*RULES, Rule(r"layers\.0\.weight", "model/other")], TARGET)
    both = [Rule(r".*\.weight", "w")]
    with pytest.raises(ConfigError, match="left over: b.weight"):
        convert({"a.weight": np.zeros(1), "b.weight": np.zeros(1)}, both, {"w": jax.ShapeDtypeStruct((1,), jnp.float32)})


def test_revert_is_as_strict():
    params, shapes = convert(STATE, RULES, TARGET), {key: value.shape for key, value in STATE.items()}
    with pytest.raises(ConfigError, match="left over: model/layer_0/bias"):
        revert(params, RULES, {key: shape for key, shape in shapes.items() if key != "layers.0.bias"})
    with pytest.raises(ConfigError, match="missing: layers.5.bias"):
        revert(params, RULES, shapes | {"layers.5.bias": (3,)})


def test_a_layer_has_a_weight_and_a_bias():
    key, path = r"blocks\.(\d+)\.fc", r"model/blocks_\1/fc"
    assert layer(key, path) == [
        Rule(r"blocks\.(\d+)\.fc\.weight", r"model/blocks_\1/fc/kernel", TRANSPOSE),
        Rule(r"blocks\.(\d+)\.fc\.bias", r"model/blocks_\1/fc/bias", SAME),
    ]
    assert layer("conv", "stem", CONV, "w", bias=ROW, ends=("g", "b")) == [
        Rule(r"conv\.g", "stem/w", CONV), Rule(r"conv\.b", "stem/bias", ROW),
    ]


def test_norms_are_layers_with_a_scale_and_some_with_statistics():
    affine = [Rule(r"ln\.weight", "norm/scale", SAME), Rule(r"ln\.bias", "norm/bias", SAME)]
    assert norm("ln", "norm") == affine
    assert norm("ln", "norm", ("g", "b")) == [Rule(r"ln\.g", "norm/scale"), Rule(r"ln\.b", "norm/bias")]
    gathered = [Rule(r"ln\.running_mean", "norm/mean"), Rule(r"ln\.running_var", "norm/var")]
    assert batch_norm("ln", "norm") == [*affine, *gathered]


def test_the_rules_of_a_layer_convert_it_and_its_neighbours_are_left_over():
    state = {"fc.weight": np.ones((3, 2)), "fc.bias": np.ones(3)}
    target = {"fc": {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32), "bias": jax.ShapeDtypeStruct((3,), jnp.float32)}}
    assert convert(state, layer("fc", "fc"), target)["fc"]["kernel"].shape == (2, 3)
    with pytest.raises(ConfigError, match="left over: xfc.bias"):
        convert(state | {"xfc.bias": np.ones(3)}, layer("fc", "fc"), target)


def test_shapes_become_a_state_dict_without_numbers():
    assert {key: value.shape for key, value in structs({"a": [2, 3], "b": ()}).items()} == {"a": (2, 3), "b": ()}


@pytest.mark.parametrize("layout, shape", [
    (SAME, (3,)), (TRANSPOSE, (3, 5)), (PATCH, (6, 3, 2, 4)), (CONV, (6, 3, 2, 4)), (POINT, (6, 3, 1)), (POINT, (6, 3, 1, 1)),
    (ROW, (1, 1, 5)), (UNBATCHED, (1, 4, 5)),
])
def test_layouts_have_exact_inverses(layout, shape):
    w = RNG.randn(*shape)
    np.testing.assert_array_equal(layout.official(layout.ours(w), shape), w)


def test_patch_layout_is_the_convolution():
    w, x = RNG.randn(5, 3, 2, 2).astype(np.float32), RNG.randn(1, 4, 6, 3).astype(np.float32)
    want = jax.lax.conv_general_dilated(x.transpose(0, 3, 1, 2), w, (2, 2), "VALID")  # [1, 5, 2, 3]
    patches = x.reshape(1, 2, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(6, 12)
    np.testing.assert_allclose(patches @ PATCH.ours(w), want[0].reshape(5, 6).T, rtol=1e-5, atol=1e-5)
