import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.vae import KL, PRESETS, VQ, Posterior, preset
from diffusion_jax.nn.tiles import tiled
from diffusion_jax.pretrained.shapes import shapes_of

TINY = dict(width=8, mults=(1, 2), depth=1, groups=4, latent=2)
X = jnp.clip(jax.random.normal(jax.random.key(1), (2, 16, 8, 3)), -1, 1)


def drawn(model, x=X):
    """Parameters that are all random."""
    shapes, rng = jax.eval_shape(model.init, jax.random.key(0), x)["params"], np.random.default_rng(0)

    def draw(path, p):
        spread = max(np.prod(p.shape[:-1]), 1) ** -0.5 if path[-1].key == "kernel" else 0.1
        return np.float32(rng.normal(path[-1].key == "scale", spread, p.shape))

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.parametrize("name", ["sd", "vq-f4-noattn"] + [
    pytest.param(name, marks=pytest.mark.slow) for name in ("kl-f32", "vq-f8-n256")])
def test_shapes_of_presets(name):
    model = (VQ if "codes" in PRESETS[name] else KL)(**preset(name))
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    params = shapes_of(model.init, jax.random.key(0), image)
    latent = shapes_of(lambda v, x, m=model: m.apply(v, x, method="encode"), params, image)
    assert latent.mean.shape[1:] == model.latent_shape(256, 256)
    assert shapes_of(lambda v, z, m=model: m.apply(v, z, method="decode"), params, latent.mean).shape == image.shape


@pytest.mark.slow
def test_bfloat16_is_close_and_its_parameters_are_float32():
    model = KL(**TINY)
    params = drawn(model)
    wide, short = (jax.jit(m.apply)({"params": params}, X) for m in (model, model.clone(dtype="bfloat16")))
    assert short.dtype == jnp.float32
    assert float(jnp.std(short - wide)) < 0.03 * float(jnp.std(wide))


@pytest.mark.slow
def test_gradients_pass_through_the_codebook():
    model = VQ(**TINY, codes=5)
    params = drawn(model)

    @jax.jit
    def gradients(params):
        def loss(params):
            y, _, parts = model.apply({"params": params}, X, jax.random.key(0), method="train")
            return jnp.mean((y - X) ** 2) + parts["codebook"]

        return jax.grad(loss)(params)

    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradients(params)["encoder"]["stem"]))


def test_kl_is_the_divergence_of_the_closed_form():
    mean, std = np.random.default_rng(0).uniform(0.1, 2, (2, 3, 4, 4, 2))
    p = Posterior(jnp.float32(mean), 2 * jnp.log(jnp.float32(std)))
    np.testing.assert_allclose(p.kl(), 0.5 * np.sum(mean**2 + std**2 - 1 - 2 * np.log(std), axis=(1, 2, 3)), rtol=1e-5)


@pytest.mark.slow
def test_tiles_decode_what_the_whole_does_away_from_the_borders():
    model = KL(**TINY | {"mid_attention": False})
    params = drawn(model)
    z = jax.random.normal(jax.random.key(3), (1, 24, 24, 2))
    decode = jax.jit(lambda z: model.apply({"params": params}, z, method="decode"))
    whole, parts = decode(z), tiled(decode, z, 16, 8)
    assert parts.shape == whole.shape and float(jnp.corrcoef(whole.ravel(), parts.ravel())[0, 1]) > 0.95


def test_sides_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="no multiple"):
        KL(**TINY).init(jax.random.key(0), jnp.zeros((1, 15, 16, 3)))
