"""The discrete VAE with a codebook: its transposed convolution, and its halves where they are linear. The numbers are goldens."""
import jax
import numpy as np

from diffusion_jax.models.dvae_codebook import CodebookVAE, Deconv, ResBlock

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_a_transposed_convolution_spreads_every_pixel_over_sixteen():
    """Pixel (r, c) reaches rows 2 r - 1 ... 2 r + 2 and as many columns, through the flipped kernel."""
    x, kernel, bias = draw(2, 3, 4, 2), draw(4, 4, 2, 5), draw(5)
    want = np.zeros((2, 8, 10, 5))
    for r in range(3):
        for c in range(4):
            want[:, 2 * r : 2 * r + 4, 2 * c : 2 * c + 4] += np.einsum("bx,ijxy->bijy", x[:, r, c], kernel[::-1, ::-1])
    got = jax.jit(Deconv(5).apply)({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(got, want[:, 1:-1, 1:-1] + bias, atol=1e-5)


def test_without_layers_a_code_is_drawn_as_its_row_and_read_off_linearly():
    model = CodebookVAE(codes=6, code_width=3, width=4, layers=0, channels=2)
    x, z = draw(2, 3, 4, 2), np.eye(6, dtype=np.float32)[RNG.integers(0, 6, (2, 3, 4))]
    shapes = jax.eval_shape(model.init, KEY, x)["params"]
    params = jax.tree.map(lambda leaf: draw(*leaf.shape), shapes)
    decoder, encoder = (params[half]["output"] for half in ("decoder", "encoder"))
    rows = params["codebook"][z.argmax(-1)]
    bound = model.bind({"params": params})
    np.testing.assert_allclose(bound.decode(z), rows @ decoder["kernel"] + decoder["bias"], atol=1e-5)
    np.testing.assert_allclose(bound.encode(x), x @ encoder["kernel"] + encoder["bias"], atol=1e-5)
    assert model.factor == 1 and bound.pixels(x) is x


def test_a_block_that_adds_nothing_is_the_identity():
    x = draw(1, 3, 4, 2)
    shapes = jax.eval_shape(ResBlock().init, KEY, x)["params"]
    params = jax.tree.map(lambda leaf: draw(*leaf.shape), shapes)
    params["conv_3"] = jax.tree.map(np.zeros_like, params["conv_3"])
    np.testing.assert_array_equal(jax.jit(ResBlock().apply)({"params": params}, x), x)
