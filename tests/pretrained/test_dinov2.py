"""DINOv2's published keys and positions, and what is missing."""
import jax
import numpy as np
import pytest
from dinov2_keys import published, weights

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dinov2 import DINOv2
from diffusion_jax.pretrained import dinov2

RNG = np.random.default_rng(0)
SMALL = DINOv2(width=16, depth=2, heads=2)


def test_the_published_keys_convert_completely():
    shapes = {key: jax.ShapeDtypeStruct(shape, np.float32) for key, shape in published(grid=16).items()}
    params = jax.eval_shape(lambda w: dinov2.rules.convert(
        {key: value for key, value in w.items() if key != dinov2.UNUSED}, dinov2.RULES,
        DINOv2().init(jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32))["params"]), shapes)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 304_368_640 - (37**2 - 16**2) * 1024 - 1024


def test_positions_are_interpolated_as_pytorch_does():
    torch = pytest.importorskip("torch")
    table = RNG.normal(size=(1, 1 + 37**2, 3)).astype(np.float32)
    grid = torch.tensor(table[:, 1:].reshape(1, 37, 37, 3).transpose(0, 3, 1, 2))
    want = torch.nn.functional.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
    want = want.numpy().transpose(0, 2, 3, 1)
    got = dinov2.positions(table, 16)
    np.testing.assert_allclose(got[:, 1:].reshape(1, 16, 16, 3), want, atol=2e-5)
    np.testing.assert_array_equal(got[:, :1], table[:, :1])


def test_positions_of_the_right_number_stay_and_others_keep_a_constant():
    table = RNG.normal(size=(1, 1 + 4**2, 3)).astype(np.float32)
    assert dinov2.positions(table, 4) is table
    flat = np.concatenate([table[:, :1], np.ones((1, 49, 3), np.float32)], axis=1)
    got = dinov2.positions(flat, 3)
    assert got.shape == (1, 10, 3)
    np.testing.assert_array_equal(got[:, :1], table[:, :1])
    np.testing.assert_allclose(got[:, 1:], 1, atol=1e-5)


def test_blocks_may_be_counted_in_chunks_and_a_patch_is_a_row_of_pixels():
    state = weights(RNG, width=16, depth=2, grid=2)
    params = dinov2.convert(state, SMALL, 28)
    chunked = {key.replace("blocks.", "blocks.0."): value for key, value in state.items()}
    jax.tree.map(np.testing.assert_array_equal, dinov2.convert(chunked, SMALL, 28), params)
    rows = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(-1, 16)
    np.testing.assert_array_equal(params["stem"]["kernel"], rows)
    np.testing.assert_array_equal(params["block_1"]["fc2"]["kernel"], state["blocks.1.mlp.fc2.weight"].T)
    np.testing.assert_array_equal(params["block_0"]["gain2"], state["blocks.0.ls2.gamma"])


def test_what_it_cannot_find_is_named(tmp_path):
    with pytest.raises(ConfigError, match="get https://.*dinov2_vitl14_pretrain.pth and put it there"):
        dinov2.load(tmp_path)
