"""The transformer's two layouts, its runs of blocks and its table of positions."""
import jax
import numpy as np
import pytest
from exports import filled, same

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dit import stack_layers
from diffusion_jax.models.mmdit import MMDiT
from diffusion_jax.nn.embed import sincos_2d
from diffusion_jax.pretrained import sd3_mmdit

MODEL = MMDiT(2, 16, 4, 2, channels=4, qk_norm="rms", dual=1, grid=8, step=0.5)


@pytest.fixture(scope="module")
def params():
    return filled(sd3_mmdit.shapes(MODEL, 12, 6))


def test_both_layouts_come_back_bit_for_bit(params):
    original = sd3_mmdit.official_weights(params, MODEL)
    diffusers = sd3_mmdit.diffusers(original)
    same(sd3_mmdit.convert(original, MODEL), params)
    same(sd3_mmdit.convert(diffusers, MODEL), params)
    scanned = sd3_mmdit.convert(diffusers, MODEL.clone(scan=True))
    same(scanned, stack_layers(params))
    again = sd3_mmdit.revert(scanned, {key: value.shape for key, value in diffusers.items()}, MODEL)
    same(again, {key: np.asarray(value) for key, value in diffusers.items()})
    assert set(sd3_mmdit.original(diffusers)) == set(original)


def test_halves_are_swapped_where_the_layouts_differ_and_nowhere_else(params):
    original = sd3_mmdit.official_weights(params, MODEL)
    diffusers = sd3_mmdit.diffusers(original)
    for ours, theirs, swapped in (
        ("final_layer.adaLN_modulation.1", "norm_out.linear", True),
        ("joint_blocks.3.context_block.adaLN_modulation.1", "transformer_blocks.3.norm1_context.linear", True),
        ("joint_blocks.2.context_block.adaLN_modulation.1", "transformer_blocks.2.norm1_context.linear", False),
        ("joint_blocks.3.x_block.adaLN_modulation.1", "transformer_blocks.3.norm1.linear", False),
    ):
        one, other = np.asarray(original[f"{ours}.weight"]), np.asarray(diffusers[f"{theirs}.weight"])
        np.testing.assert_array_equal(np.roll(one, len(one) // 2, axis=0) if swapped else one, other)
    rows = np.asarray(original["joint_blocks.0.x_block.attn2.qkv.bias"])
    np.testing.assert_array_equal(diffusers["transformer_blocks.0.attn2.to_k.bias"], rows[16:32])


def test_blocks_are_counted_within_their_runs(params):
    names = sd3_mmdit.grouped(sd3_mmdit.official_weights(params, MODEL))
    place = {name.rpartition(".x_block")[0]: key.split(".")[1] for name, key in names.items() if "x_block.mlp.fc1.bias" in key}
    assert place == {"dual.0": "0", "joint.0": "1", "joint.1": "2", "last": "3"}
    keys = [f"joint_blocks.{i}.context_block.attn.proj.weight" for i in range(2)] + ["joint_blocks.1.x_block.attn2.proj.weight"]
    with pytest.raises(ConfigError, match="in this order"):
        sd3_mmdit.grouped(dict.fromkeys(keys))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_positions_are_read_off_a_stored_table(dtype):
    """Of what files may hold: an affine scale of another step or origin than the published one, in half precision too."""
    grid, width = 24, 64
    stored = jax.numpy.asarray(sincos_2d(grid, grid, width, grid=8)[None], dtype)
    assert sd3_mmdit.placed(stored, 1 / 3) == (0.0, 1 / 3)                       # as it is said to be
    origin, step = sd3_mmdit.placed(stored, 0.5)
    assert origin == pytest.approx(0, abs=5e-3) and step == pytest.approx(1 / 3, abs=1e-3)
    model = MMDiT(2, width, 1, 2, grid=grid, origin=-7.5, step=0.625)
    origin, step = sd3_mmdit.placed(sd3_mmdit.position_table(model).astype(stored.dtype), 1.0)
    assert origin == pytest.approx(-7.5, abs=5e-3) and step == pytest.approx(0.625, abs=1e-3)


def test_what_is_no_table_of_positions_is_refused():
    table = sincos_2d(8, 8, 16, grid=4)[None].astype(np.float32)
    np.testing.assert_allclose(sd3_mmdit.position_table(MODEL), table, atol=1e-6)
    for broken in (table * 0.9, np.where(np.arange(64)[:, None] == 40, 0, table), table[..., ::-1]):
        with pytest.raises(ConfigError, match="no table of sines and cosines"):
            sd3_mmdit.placed(broken, 0.5)


def test_weights_of_another_network_are_refused(params):
    original = sd3_mmdit.official_weights(params, MODEL)
    with pytest.raises(ConfigError, match="origin and step"):
        sd3_mmdit.convert(original, MODEL.clone(step=1.0))
    with pytest.raises(ConfigError, match="16x16 patches"):
        sd3_mmdit.convert(original, MODEL.clone(grid=16))
    with pytest.raises(ConfigError, match="left over: joint_blocks.1.x_block.attn.other"):
        sd3_mmdit.convert(sd3_mmdit.diffusers(original) | {"joint_blocks.1.x_block.attn.other": np.zeros(3)}, MODEL)
    with pytest.raises(ConfigError, match="no x_embedder.proj.weight"):
        sd3_mmdit.published({})
