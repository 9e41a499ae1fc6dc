"""Weights of many blocks, one kind at a time."""
import jax
import numpy as np
import pytest
from exports import same

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dit import stack_layers, unstack_layers
from diffusion_jax.pretrained import rules, stacking
from diffusion_jax.pretrained.rules import TRANSPOSE, Rule

TABLE = [
    Rule(r"first\.(\d+)\.w", r"first/blocks_\1/a/kernel", TRANSPOSE), Rule(r"(\d+)\.w", r"blocks_\1/a/kernel", TRANSPOSE),
    Rule(r"(\d+)\.b", r"blocks_\1/b"), Rule("other", "other"),
]


def official(depth=11):
    rng = np.random.default_rng(0)
    found = {f"{i}.w": np.float32(rng.random((2, 3))) for i in range(depth)}
    found |= {f"{i}.b": np.float16(rng.random(4)) for i in range(depth)}
    return found | {f"first.{i}.w": np.float32(rng.random((3, 2))) for i in range(2)} | {"other": np.float32(rng.random(2))}


def target(weights):
    """Shapes of float32 parameters with unrolled blocks."""
    made = {}
    for key, value in weights.items():
        rule, path = rules.find(key, TABLE)
        *parents, last = path.split("/")
        section = made
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = jax.ShapeDtypeStruct(rule.layout.ours(value).shape, np.float32)
    return made


def test_it_is_stack_layers_of_all_at_once():
    weights = official()
    made = stacking.convert(weights, TABLE, target(weights))
    same(made, stack_layers(rules.convert(weights, TABLE, target(weights))))
    np.testing.assert_array_equal(made["blocks"]["a"]["kernel"][10], weights["10.w"].T)


def test_it_is_as_strict():
    weights = official(2)
    whole = target(weights)
    for change, says in (({"strange": weights["other"]}, "left over: strange"), ({"1.w": weights["0.w"][:1]}, "wrong shape: 1.w"),
                         ({"2.w": weights["0.w"]}, "left over: 2.w")):
        with pytest.raises(ConfigError, match=says):
            stacking.convert(weights | change, TABLE, whole)
    for key, says in (("0.w", "missing: blocks_0/a/kernel"), ("other", "missing: other")):
        with pytest.raises(ConfigError, match=says):
            stacking.convert({name: value for name, value in weights.items() if name != key}, TABLE, whole)


def test_shapes_of_unrolled_blocks_are_those_of_the_arrays():
    tree = {"dual": {"blocks": {"a": {"kernel": np.zeros((3, 2, 5), np.float16)}}}, "b": np.zeros(4)}
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)              # noqa: E731
    assert shapes(stacking.unstacked_shapes(tree)) == shapes(unstack_layers(tree))
