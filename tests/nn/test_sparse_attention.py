"""Patterns of attention: their masks from the words that define them, blocks and cache against the masked dense product."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.nn.sparse_attention import (
    KINDS,
    Pattern,
    cached_attention,
    dense_attention,
    mask,
    plan,
    sparse_attention,
    visible,
)

PATTERNS = [Pattern(kind, 3, 4, 3, wrap) for kind in KINDS for wrap in ((False, True) if kind == "conv" else (False,))]
each = pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: f"{p.kind}{'_wrap' if p.wrap else ''}")


def sees(pattern, i, j):
    """The definition, token by token."""
    p, g = pattern.text, pattern.grid
    if j > i or j < p or i < p:
        return j <= i
    (r, c), (r2, c2) = divmod(i - p, g), divmod(j - p, g)
    near = [min(abs(a), g - abs(a)) if pattern.wrap else abs(a) for a in (r - r2, c - c2)]
    return {"full": True, "row": i - j <= g, "column": c == c2, "conv": max(near) <= pattern.kernel // 2,
            "axial_row": r == r2, "axial_column": c == c2}[pattern.kind]


def arrays(pattern):
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (2, 2, pattern.length, 8)) for key in keys]


@each
def test_a_mask_is_its_definition(pattern):
    want = [[sees(pattern, i, j) for j in range(pattern.length)] for i in range(pattern.length)]
    np.testing.assert_array_equal(mask(pattern), want)


@pytest.mark.parametrize("pattern", [
    pytest.param(p, id=f"{p.kind}{p.wrap}", marks=() if p.wrap or p.kind in ("row", "column") else pytest.mark.slow)
    for p in PATTERNS
])
def test_blocks_and_cache_give_the_masked_dense_product(pattern):
    q, k, v = arrays(pattern)
    dense = jax.jit(lambda: dense_attention(q, k, v, pattern))()
    blocks = jax.jit(lambda: sparse_attention(q, k, v, pattern))()
    np.testing.assert_allclose(blocks, dense, atol=2e-6)
    step = jax.jit(lambda i: cached_attention(jax.lax.dynamic_slice_in_dim(q, i, 1, 2), k, v, i, pattern))
    for i in (0, 2, 3, 9, pattern.length - 1):
        np.testing.assert_allclose(step(jnp.int32(i))[:, :, 0], dense[:, :, i], atol=2e-6)


@pytest.mark.slow
def test_gradients_of_blocks_are_those_of_the_dense_product():
    pattern = Pattern("row", 3, 4)
    q, k, v = arrays(pattern)
    dense, sparse = (jax.jit(jax.grad(lambda q, k, v, f=f: jnp.sum(f(q, k, v, pattern) ** 2), (0, 1, 2)))(q, k, v)
                     for f in (dense_attention, sparse_attention))
    for a, b in zip(dense, sparse, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


def test_the_cost_falls_with_the_pattern():
    """Products of queries and image keys, as a share of all, for the paper's grid."""
    share = {kind: plan(Pattern(kind, 256, 32)).bias.size / 1024**2 for kind in ("full", "row", "column", "conv")}
    assert share == {"full": 1, "row": 2 / 32, "column": 1 / 32, "conv": 6 / 32}
    assert visible(Pattern("row", 256, 32))[0].shape == (1280, 256 + 33)


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'column'"):
        Pattern("columns", 3, 4)
    with pytest.raises(ConfigError, match="odd kernel"):
        Pattern("conv", 3, 4, kernel=4)
