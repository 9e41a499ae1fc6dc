"""The networks that measure: what they take, what they give, and what they are called; by shapes alone."""
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.metrics import networks
from diffusion_jax.metrics.networks import SeeDINOv2, SeeInception, colour
from diffusion_jax.models.dinov2 import DINOv2

KEY = jax.random.key(0)


def test_gray_images_become_gray_in_colour():
    x = np.arange(8).reshape(1, 2, 4, 1)
    out = colour(x)
    assert out.shape == (1, 2, 4, 3) and all((out[..., c] == x[..., 0]).all() for c in range(3))
    rgb = np.zeros((1, 2, 2, 3))
    assert colour(rgb) is rgb


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_sees_299_pixels_and_gives_logits_without_bias(channels, monkeypatch):
    class Recorder:
        """Gives what it sees."""

        def apply(self, variables, x):
            return SimpleNamespace(pool3=x, spatial=x[..., 0], logits=None, unbiased=variables["params"])

    monkeypatch.setattr(networks, "Inception", Recorder)
    images = jax.ShapeDtypeStruct((2, 8, 12, channels), jnp.uint8)
    out = jax.eval_shape(SeeInception("tensorflow"), jnp.zeros(7), images)
    assert {name: value.shape for name, value in out.items()} == {
        "features": (2, 299, 299, 3), "spatial": (2, 299, 299), "logits": (7,)}


def test_dinov2_sees_224_pixels():
    small = DINOv2(width=16, depth=1, heads=2)
    params = jax.eval_shape(small.init, KEY, jnp.zeros((1, 224, 224, 3)))["params"]
    out = jax.eval_shape(SeeDINOv2(small), params, jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.uint8))
    assert {name: value.shape for name, value in out.items()} == {"features": (2, 16)}


def test_a_network_is_named_after_its_resize_and_equal_where_its_program_is():
    assert networks.inception({}, "clean_fid").label == "inception, clean_fid" and networks.dinov2({}).label == "dinov2"
    assert networks.inception({"a": 1}) == networks.inception({"a": 2}) != networks.inception({}, "pytorch_fid")
    assert len({networks.inception({"a": 1}).see, networks.inception({}).see, networks.dinov2({}).see}) == 2
    with pytest.raises(ConfigError, match="unknown resize convention 'tensorflo': did you mean 'tensorflow'"):
        networks.inception({}, "tensorflo")
