"""DINOv2 against transformers' network on equal weights, and its published keys."""
import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dinov2 import DINOv2
from diffusion_jax.pretrained import dinov2

RNG = np.random.default_rng(0)
SMALL = DINOv2(width=16, depth=2, heads=2)


def published(width=1024, depth=24, grid=37):
    """Key -> shape of the official file."""
    keys = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + grid**2, width), "mask_token": (1, width),
            "patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,),
            "norm.weight": (width,), "norm.bias": (width,)}
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (4 * width, width),
              "mlp.fc2": (width, 4 * width)}
    for i in range(depth):
        keys |= {f"blocks.{i}.{name}": (width,) for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias",
                                                             "ls1.gamma", "ls2.gamma")}
        keys |= {f"blocks.{i}.{name}.weight": shape for name, shape in layers.items()}
        keys |= {f"blocks.{i}.{name}.bias": shape[:1] for name, shape in layers.items()}
    return keys


def weights(**options):
    return {key: RNG.normal(0, 0.2, shape).astype(np.float32) for key, shape in published(**options).items()}


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


@pytest.mark.slow
def test_is_the_network_that_transformers_has():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    state = weights(width=16, depth=2, grid=2)
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


def test_what_it_cannot_see_or_find_is_named(tmp_path):
    with pytest.raises(ConfigError, match="do not divide 30x28"):
        jax.eval_shape(SMALL.init, jax.random.key(0), np.zeros((1, 30, 28, 3)))
    with pytest.raises(ConfigError, match="get https://.*dinov2_vitl14_pretrain.pth and put it there"):
        dinov2.load(tmp_path)
