"""DINOv2 against transformers' network on equal weights, and what it refuses."""
import jax
import numpy as np
import pytest
from dinov2_keys import weights

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dinov2 import DINOv2
from diffusion_jax.pretrained import dinov2

RNG = np.random.default_rng(0)
SMALL = DINOv2(width=16, depth=2, heads=2)


@pytest.mark.slow
def test_is_the_network_that_transformers_has():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    state = weights(RNG, width=16, depth=2, grid=2)
    config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    peer = transformers.Dinov2Model(config).eval()
    theirs = {"embeddings.cls_token": state["cls_token"], "embeddings.mask_token": state["mask_token"],
              "embeddings.position_embeddings": state["pos_embed"], "layernorm.weight": state["norm.weight"],
              "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
              "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"], "layernorm.bias": state["norm.bias"]}
    for i in range(2):
        for kind in ("weight", "bias"):
            for name, part in zip("qkv", np.split(state[f"blocks.{i}.attn.qkv.{kind}"], 3), strict=True):
                theirs[f"encoder.layer.{i}.attention.{name}_proj.{kind}"] = part
            for ours, name in (("attn.proj", "attention.o_proj"), ("norm1", "norm1"), ("norm2", "norm2"), ("mlp.fc1", "mlp.fc1"),
                               ("mlp.fc2", "mlp.fc2")):
                theirs[f"encoder.layer.{i}.{name}.{kind}"] = state[f"blocks.{i}.{ours}.{kind}"]
        for j in (1, 2):
            theirs[f"encoder.layer.{i}.layer_scale{j}.lambda1"] = state[f"blocks.{i}.ls{j}.gamma"]
    peer.load_state_dict({key: torch.tensor(value) for key, value in theirs.items()})
    x = RNG.normal(size=(2, 28, 28, 3)).astype(np.float32)
    with torch.no_grad():
        want = peer(torch.tensor(x.transpose(0, 3, 1, 2))).pooler_output.numpy()
    got = jax.jit(SMALL.apply)({"params": dinov2.convert(state, SMALL, 28)}, x)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_what_it_cannot_see_is_named():
    with pytest.raises(ConfigError, match="do not divide 30x28"):
        jax.eval_shape(SMALL.init, jax.random.key(0), np.zeros((1, 30, 28, 3)))


def test_the_first_token_is_read_and_every_patch_is_seen():
    x = RNG.normal(size=(1, 28, 42, 3)).astype(np.float32)
    shapes = jax.eval_shape(SMALL.init, jax.random.key(0), x)["params"]
    assert shapes["pos"].shape == (1 + 2 * 3, 16)
    params = jax.tree.map(lambda leaf: RNG.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    out, grad = jax.jit(jax.value_and_grad(lambda x: SMALL.apply({"params": params}, x)[0, 0]))(x)
    assert np.isfinite(out) and np.abs(grad).reshape(2, 14, 3, 14, 3).max((1, 3, 4)).min() > 0
