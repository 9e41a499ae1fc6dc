"""Operations counted in a jaxpr: formulas, loops, recomputation, and XLA's own count of a small unrolled network."""
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.cost import flops
from diffusion_jax.models.dit import DiT


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def total(function, *shapes):
    return sum(flops.count(function, *shapes).values())


def test_a_product_and_its_gradients():
    assert total(lambda x, w: x @ w, shape(2, 3), shape(3, 5)) == 2 * 2 * 3 * 5
    assert total(jax.grad(lambda x, w: (x @ w).sum(), (0, 1)), shape(2, 3), shape(3, 5)) == 3 * 2 * 2 * 3 * 5


def test_a_loop_counts_its_trips_and_a_branch_its_dearest():
    assert total(lambda x, w: jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0], shape(2, 3), shape(3, 3)) == 7 * 36
    assert total(lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w), shape(2, 3), shape(3, 3)) == 72


def test_what_is_recomputed_counts_again():
    def layers(x, w):
        return jnp.sum(jnp.sin(x @ w) @ w)

    plain = total(jax.grad(layers, 1), shape(2, 3), shape(3, 3))
    assert total(jax.grad(jax.checkpoint(layers), 1), shape(2, 3), shape(3, 3)) == plain + 36


@pytest.mark.parametrize(("stride", "padding"), [(1, "SAME"), (2, "VALID")])
def test_a_convolution(stride, padding):
    numbers = ("NHWC", "HWIO", "NHWC")
    convolve = partial(jax.lax.conv_general_dilated, window_strides=(stride,) * 2, padding=padding, dimension_numbers=numbers)
    side = 8 if padding == "SAME" else 3
    assert total(convolve, shape(2, 8, 8, 3), shape(3, 3, 3, 5)) == 2 * 2 * side**2 * 5 * 9 * 3


def network(scan, depth=3):
    model = DiT(patch=2, width=128, depth=depth, heads=2, channels=3, scan=scan)
    x, t, cond = shape(4, 16, 16, 3), shape(4), {"vec": shape(4, 128)}
    params = jax.eval_shape(model.init, jax.random.key(0), x, t, cond)
    return lambda params, x, t, cond: model.apply(params, x, t, cond), (params, x, t, cond)


def test_layers_are_modules_and_scanning_them_changes_nothing():
    scanned, unrolled = (flops.count(*((f, *args))) for f, args in map(network, (True, False)))
    assert sum(scanned.values()) == sum(unrolled.values())
    assert scanned["DiT/blocks/mlp/fc1"] == unrolled["DiT/blocks/mlp/fc1"] == 3 * 2 * 4 * 64 * 128 * 512
    assert all("blocks_" not in layer and "lambda" not in layer for layer in unrolled)


def test_equals_xlas_count_of_an_unrolled_network():
    function, args = network(scan=False)
    compiled = jax.jit(function).lower(*args).compile()
    ours, xla = total(function, *args), compiled.cost_analysis()["flops"]
    assert ours <= xla <= 1.03 * ours                            # XLA counts sums and sines too


@pytest.mark.slow
def test_the_papers_count_of_dit_xl_2():
    model = DiT(patch=2, width=1152, depth=28, heads=16, scan=True)
    x, t, cond = shape(1, 32, 32, 4), shape(1), {"vec": shape(1, 1152)}
    params = jax.eval_shape(model.init, jax.random.key(0), x, t, cond)
    assert abs(total(model.apply, params, x, t, cond) / 2 - 118.64e9) < 0.1e9            # 2212.09748, table 4
