"""Rules that split activations: what they decide, when they are in force, and which of them are refused."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.nn import partition
from diffusion_jax.nn.partition import activations, constrain, splits
from diffusion_jax.train import shard

QUERIES = (("attention/q", (("data", "fsdp"), None, "tensor", None)),)
X = np.ones((2, 1, 8, 4), np.float32)


def test_without_rules_nothing_happens():
    assert constrain(X, "attention/q") is X and partition.mesh() is None and not splits(X, "attention/q", 2)


def test_rules_split_what_they_name_while_they_are_in_force():
    mesh = shard.make_mesh(data=2, tensor=4)
    with pytest.raises(RuntimeError, match="in the middle"), activations(mesh, QUERIES):
        assert partition.mesh() is mesh
        assert [splits(X, "attention/q", dim) for dim in range(4)] == [True, False, True, False]
        assert not splits(X, "attention/k", 2) and constrain(X, "attention/k") is X
        split = jax.jit(lambda x: constrain(x, "attention/q"))(X)
        raise RuntimeError("in the middle")
    assert {shard.data.shape for shard in split.addressable_shards} == {(1, 1, 2, 4)}
    assert partition.mesh() is None


def test_an_axis_that_does_not_divide_leaves_its_dimension_whole():
    odd = jnp.ones((3, 1, 8, 4))
    with activations(shard.make_mesh(data=2, tensor=4), QUERIES):
        assert not splits(odd, "attention/q", 0) and splits(odd, "attention/q", 2)
    with activations(shard.make_mesh(data=8), QUERIES):                        # an axis of one device splits nothing
        assert not splits(odd, "attention/q", 2)


def test_the_first_rule_that_names_an_activation_counts_and_specs_end_at_the_last_dimension():
    rules = (("/k", ("tensor", None)), ("attention", (None, None)))
    with activations(shard.make_mesh(data=2, tensor=4), rules):
        assert splits(X, "attention/k", 2) and not splits(X, "attention/v", 2)


@pytest.mark.parametrize(("rules", "says"), [
    ((("attention/q", ("tensr", None)),), "unknown mesh axis 'tensr': did you mean 'tensor'"),
    ((("attention/q", (None,) * 5),), "5 entries for 4 dimensions"),
    ((("atention/q", ("tensor", None)),), "'atention/q' decides nothing"),
    ((("attention(", ("tensor", None)),), "no regular expression"),
    ((("attention", ("tensor", None)), ("attention/k", (None, None))), "'attention/k' decides nothing"),
])
def test_rules_that_mean_nothing_are_refused(rules, says):
    with pytest.raises(ConfigError, match=says), activations(shard.make_mesh(data=2, tensor=4), rules):
        pass
