"""The autoencoder without maps between its halves; its numbers are in the goldens, sd3/vae."""
import numpy as np
import pytest
from exports import filled, same

from diffusion_jax.build import ConfigError, build
from diffusion_jax.pretrained import sd3_vae, vae

OPTIONS = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"] * 2, "block_out_channels": [8, 12],
    "up_block_types": ["UpDecoderBlock2D"] * 2, "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4,
    "scaling_factor": 1.5, "shift_factor": 0.1, "use_quant_conv": False, "use_post_quant_conv": False,
}


def test_files_without_maps_get_the_identity_and_lose_it_again():
    spec = sd3_vae.diffusers_config(OPTIONS)
    assert spec["mults"] == (1, 1.5) and sd3_vae.latents(OPTIONS) == {"scale": 1.5, "shift": 0.1}
    model = build(spec)
    params = filled(vae.shapes(model))
    shapes = {key: shape for key, shape in vae.official_shapes(params).items() if not key.startswith(tuple(sd3_vae.MAPS))}
    bare = sd3_vae.revert(params, shapes)
    back = sd3_vae.convert(bare, model)
    for name, width in (("quant", 8), ("post_quant", 4)):
        np.testing.assert_array_equal(back[name]["kernel"], np.eye(width))
        assert not np.any(back[name]["bias"])
    assert sd3_vae.has_maps(params) and not sd3_vae.has_maps(back)
    same(back | {name: params[name] for name in ("quant", "post_quant")}, params)
    same(sd3_vae.revert(back, shapes), bare)
    assert sd3_vae.published(bare)["latent"] == 4
    whole = sd3_vae.with_maps(bare) | {"quant_conv.bias": np.ones(8, np.float32)}
    assert np.all(sd3_vae.convert(whole, model)["quant"]["bias"])                  # a file that has maps keeps them


def test_latents_without_numbers():
    assert sd3_vae.latents({}) == {"scale": sd3_vae.SCALE, "shift": 0.0}
    with pytest.raises(ConfigError, match="scaling_factor"):
        sd3_vae.latents({"scaling_factor": [1.0]})
