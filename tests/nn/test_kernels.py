"""Which kernel attends where, and the numbers of those that this machine can run."""
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nn import kernels, partition
from diffusion_jax.nn.attention import attention, plain
from diffusion_jax.nn.partition import activations
from diffusion_jax.train import shard


def shapes(t, d, dtype="bfloat16", s=None, b=8):
    return tuple(types.SimpleNamespace(shape=(b, 4, n, d), dtype=jnp.dtype(dtype)) for n in (t, s or t))


@pytest.mark.parametrize(
    ("platform", "shape", "biased", "want"),
    [
        ("cpu", shapes(4096, 64), False, "xla"),
        ("tpu", shapes(4096, 64), False, "flash"),
        ("tpu", shapes(4096, 72, "float32"), False, "flash"),
        ("tpu", shapes(256, 64), False, "xla"),
        ("tpu", shapes(4096, 64), True, "xla"),
        ("tpu", shapes(4000, 64), False, "xla"),
        ("tpu", shapes(4096, 64, s=77), False, "xla"),
        ("cuda", shapes(4096, 64), False, "cudnn"),
        ("cuda", shapes(4096, 64, "float32"), False, "xla"),
        ("cuda", shapes(4096, 160), False, "xla"),
    ],
)
def test_platform_and_shape_choose(platform, shape, biased, want):
    assert kernels.backend(platform, *shape, biased) == want


def test_a_batch_that_a_mesh_does_not_divide_is_left_to_xla():
    mesh = shard.make_mesh(data=4, fsdp=2)
    assert kernels.backend("tpu", *shapes(4096, 64), False, mesh) == "flash"
    assert kernels.backend("tpu", *shapes(4096, 64, b=6), False, mesh) == "xla"


@pytest.mark.slow
@pytest.mark.parametrize("over_mesh", [False, True])
def test_the_kernel_for_tpus_gives_what_xla_gives(over_mesh):
    from jax.experimental.pallas import tpu

    rng = np.random.default_rng(0)
    q, k, v, dy = (jnp.asarray(rng.normal(size=(2, 2, 256, 24)), jnp.float32) for _ in range(4))
    mesh = shard.make_mesh(data=2, tensor=2, devices=jax.devices()[:4]) if over_mesh else None
    with tpu.force_tpu_interpret_mode():
        got, pull = jax.vjp(lambda *x: kernels.flash(*x, mesh), q, k, v)
        grads = pull(dy)
    want, pull = jax.vjp(plain, q, k, v)
    np.testing.assert_allclose(got, want, atol=2e-6)
    for ours, theirs in zip(grads, pull(dy), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN's kernel runs on an NVIDIA GPU")
def test_cudnn_gives_what_xla_gives():
    q, k, v = (jax.random.normal(key, (2, 2, 1024, 64), jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 3))
    np.testing.assert_allclose(kernels.cudnn(q, k, v).astype("float32"), plain(q, k, v).astype("float32"), atol=0.02)


def test_queries_split_over_a_mesh_change_nothing():
    mesh = shard.make_mesh(data=2, tensor=4)
    rules = (("attention/q", (("data", "fsdp"), None, "tensor", None)), ("attention/[kv]", (("data", "fsdp"), None, None, None)))
    q, k, v = (jax.random.normal(key, (2, 2, 16, 8)) for key in jax.random.split(jax.random.key(0), 3))

    def split(q, k, v):
        with activations(mesh, rules):
            return attention(q, k, v)

    got = jax.jit(split)(q, k, v)
    np.testing.assert_allclose(got, plain(q, k, v), atol=2e-6)
    assert tuple(got.sharding.spec) == (("data", "fsdp"), None, ("tensor",)) or "tensor" in str(got.sharding.spec)


@pytest.mark.parametrize(("split", "want"), [("tensor", []), (None, ["flash"])])
def test_tokens_that_a_rule_splits_are_left_to_xla(split, want, monkeypatch):
    """A kernel would be given all tokens on each device."""
    called = []
    monkeypatch.setattr(kernels, "current", lambda: ("tpu", partition.mesh()))
    monkeypatch.setattr(kernels, "flash", lambda q, k, v, mesh: called.append("flash") or q)
    x = jax.ShapeDtypeStruct((2, 1, kernels.LONG, 8), jnp.float32)
    with activations(shard.make_mesh(data=2, tensor=4), (("attention/q", (split, None)),)):
        jax.eval_shape(lambda *x: attention(*x), x, x, x)                            # traced anew
    assert called == want
