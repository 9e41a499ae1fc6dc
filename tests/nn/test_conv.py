"""Convolutions against loops over the taps of their kernels, and the gradient that the CPU has a formula of its own for."""
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nn import conv
from diffusion_jax.nn.conv import Conv

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def looped(x, kernel, stride, padding):
    """(1) of nn/conv.py, tap by tap, in float64."""
    size = kernel.shape[0]
    padded = np.pad(np.float64(x), ((0, 0), padding, padding, (0, 0)))
    rows = (padded.shape[1] - size) // stride + 1
    columns = (padded.shape[2] - size) // stride + 1
    out = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for i in range(size):
        for j in range(size):
            out += padded[:, i::stride, j::stride][:, :rows, :columns] @ np.float64(kernel[i, j])
    return out


@pytest.mark.parametrize(("size", "stride", "padding"), [
    (3, 1, (1, 1)), (3, 2, (1, 1)), (3, 2, (0, 1)), (4, 2, (1, 1)), (1, 1, (0, 0)), (1, 1, (1, 0)),
])
def test_is_a_sum_over_the_taps(size, stride, padding):
    x = draw(2, 6, 8, 3)
    params = {"kernel": draw(size, size, 3, 5), "bias": draw(5)}
    want = looped(x, params["kernel"], stride, padding) + params["bias"]
    got = Conv(5, size, stride, padding).apply({"params": params}, x)
    np.testing.assert_allclose(got, want, atol=1e-5)


SMALL = [
    (3, 1, (1, 1), (2, 2)), (3, 1, (1, 1), (1, 1)), (3, 1, (1, 1), (2, 7)), (3, 2, (1, 1), (2, 2)), (3, 2, (0, 1), (2, 2)),
    (5, 1, (2, 2), (4, 3)), (4, 2, (1, 1), (3, 2)),
]


@pytest.mark.parametrize(("size", "stride", "padding", "shape"), [
    *SMALL, (3, 1, (1, 1), (6, 8)), (3, 2, (1, 1), (6, 8)), (3, 2, (0, 1), (6, 8)), (4, 2, (1, 1), (8, 6)),
    (1, 2, (0, 0), (6, 8)),
])
def test_changes_and_gradients_are_those_of_a_map_that_is_linear_in_both(size, stride, padding, shape):
    x, kernel = draw(2, *shape, 3), draw(size, size, 3, 5)
    dx, dkernel = draw(*x.shape), draw(*kernel.shape)

    def take(x, kernel):
        return conv.convolve(padding, x, kernel, stride)

    y, dy = jax.jvp(take, (x, kernel), (dx, dkernel))
    np.testing.assert_allclose(y, looped(x, kernel, stride, padding), atol=1e-5)
    want = looped(dx, kernel, stride, padding), looped(x, dkernel, stride, padding)
    np.testing.assert_allclose(dy, sum(want), atol=1e-5)
    # (back, L dx) = (L^T back, dx).
    back = draw(*y.shape)
    found = jax.vjp(take, x, kernel)[1](back)
    for gradient, along, changed in zip(found, (dx, dkernel), want, strict=True):
        np.testing.assert_allclose(np.vdot(gradient, along), np.vdot(back, changed), atol=1e-3)


@pytest.mark.parametrize(("size", "stride", "padding", "shape"), SMALL)
def test_an_image_smaller_than_the_kernel_is_one_product(size, stride, padding, shape):
    x, kernel = draw(2, *shape, 3), draw(size, size, 3, 5)
    assert "conv_general" not in str(jax.make_jaxpr(lambda x, kernel: conv.convolve(padding, x, kernel, stride))(x, kernel))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of XLA's CPU backend")
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_inside_of_loops_have_their_axes_in_the_order_that_is_fast_on_cpus(stride):
    def gradients(x, kernel):
        return jax.grad(lambda x, kernel: jnp.sum(jnp.sin(conv.convolve((1, 1), x, kernel, stride))), (0, 1))(x, kernel)

    def loop(x, kernel):
        return jax.lax.scan(lambda carry, _: (jax.tree.map(jnp.add, carry, gradients(*carry)), None), (x, kernel), length=3)[0]

    compiled = jax.jit(loop).lower(draw(2, 8, 8, 3), draw(3, 3, 3, 5)).compile().as_text()
    assert set(re.findall(r"dim_labels=(\S+?),? ", compiled)) == {"b01f_01io->b01f"}


@pytest.mark.parametrize("many", [False, True])
def test_the_gradients_are_sums_over_the_pixels(monkeypatch, many):
    """Also where the batch does not fit the cache at once."""
    x, kernel, dy = draw(4, 5, 6, 2), draw(3, 3, 2, 3), draw(4, 5, 6, 3)
    monkeypatch.setattr(conv, "CACHE", (x.nbytes + dy.nbytes) // 2)
    if many:
        monkeypatch.setattr(conv, "MANY_PIXELS", 30)
        monkeypatch.setattr(conv, "MANY_CHANNELS", 2)
    _, pull = jax.vjp(lambda x, kernel: conv.convolve((1, 1), x, kernel), x, kernel)
    dx, dkernel = pull(dy)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    want = [[np.einsum("brcx,brcy->xy", padded[:, i : i + 5, j : j + 6], dy) for j in range(3)] for i in range(3)]
    np.testing.assert_allclose(dkernel, want, atol=1e-4)
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    np.testing.assert_allclose(dx, looped(dy, flipped, 1, (1, 1)), atol=1e-5)


def test_computes_in_its_type_and_keeps_float32_parameters():
    layer = Conv(4, use_bias=False, dtype="bfloat16")
    out, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 4, 4, 2)))
    assert out.dtype == jnp.bfloat16 and out.shape == (1, 4, 4, 4)
    assert {name: (p.shape, p.dtype) for name, p in variables["params"].items()} == {"kernel": ((3, 3, 2, 4), jnp.float32)}


def test_many_pixels_and_channels_take_the_formula_for_cpus():
    def form(side, channels):
        x, kernel = jnp.zeros((1, side, side, channels)), jnp.zeros((3, 3, channels, channels))
        return "scan" in str(jax.make_jaxpr(jax.grad(lambda kernel: conv.convolve((1, 1), x, kernel).sum()))(kernel))

    assert form(32, 320) and not form(31, 320) and not form(32, 319)
