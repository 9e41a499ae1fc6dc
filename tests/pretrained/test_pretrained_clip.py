"""CLIP's weights in three layouts, and what the shapes do not tell. The numbers are goldens."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.clip import CLIP, PRESETS, TextTower, ViT, preset
from diffusion_jax.pretrained import clip

SMALL = CLIP(
    ViT(8, size=8, patch=4, width=64, layers=1, heads=1, hidden=256),
    TextTower(8, vocab=20, context=5, width=64, layers=2, heads=1),
)
OPENAI = {
    "visual.class_embedding": (64,), "visual.positional_embedding": (5, 64), "visual.proj": (64, 8),
    "visual.conv1.weight": (64, 3, 4, 4), "positional_embedding": (5, 64), "text_projection": (64, 8), "logit_scale": (),
    "token_embedding.weight": (20, 64),
    **{f"{norm}.{part}": (64,) for norm in ("visual.ln_pre", "visual.ln_post", "ln_final") for part in ("weight", "bias")},
    **{
        f"{tower}transformer.resblocks.{i}.{name}": shape
        for tower, i in (("visual.", 0), ("", 0), ("", 1)) for name, shape in {
            "attn.in_proj_weight": (192, 64), "attn.in_proj_bias": (192,), "attn.out_proj.weight": (64, 64),
            "attn.out_proj.bias": (64,), "ln_1.weight": (64,), "ln_1.bias": (64,), "ln_2.weight": (64,), "ln_2.bias": (64,),
            "mlp.c_fc.weight": (256, 64), "mlp.c_fc.bias": (256,), "mlp.c_proj.weight": (64, 256), "mlp.c_proj.bias": (64,),
        }.items()
    },
}


@pytest.fixture(scope="module")
def weights():
    rng = np.random.RandomState(0)
    return {key: np.float32(rng.randn(*shape)) for key, shape in OPENAI.items()}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name):
    built = build(dict(name="diffusion_jax.models.clip:CLIP", **preset(name)))
    assert built.text.features == built.image.features


def test_the_published_number_of_parameters():
    shapes = clip.shapes(build(dict(name="diffusion_jax.models.clip:CLIP", **preset("ViT-B/32"))))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 151277313


def test_the_towers_follow_from_shapes_and_options(weights):
    official = dict(transformer_heads=1)
    assert clip.towers(weights, official) == {
        part: dict(name=f"diffusion_jax.models.clip:{kind}", **options) for part, kind, options in (
            ("text", "TextTower", dict(features=8, vocab=20, context=5, width=64, heads=1, layers=2)),
            ("image", "ViT", dict(features=8, size=8, patch=4, width=64, layers=1, heads=1, hidden=256)),
        )
    }
    laion = clip.towers(weights, {"vision_cfg": {"width": 64, "head_width": 32}, "text_cfg": {"heads": 2}})
    assert (laion["image"]["act"], laion["image"]["heads"], laion["text"]["heads"]) == ("gelu", 2, 2)
    with pytest.raises(ConfigError, match="do not tell their activation"):
        clip.towers(weights)


def test_there_and_back_again(weights):
    params = clip.convert(weights | {"attn_mask": np.zeros((5, 5))}, SMALL)
    back = clip.revert(params, OPENAI, SMALL)
    assert all(np.array_equal(back[key], weights[key]) for key in weights)
    text = clip.convert(weights, SMALL.text)
    jax.tree.map(np.testing.assert_array_equal, text, params["text"])


def test_three_weights_become_one_and_three_again():
    parts = {f"a.{part}_proj.weight": np.full((2, 3), i) for i, part in enumerate("qkv")}
    merged = clip.merge(parts | {"b.c_proj.weight": np.ones(1)})
    assert merged["a.qkv_proj.weight"].shape == (6, 3) and len(merged) == 2
    back = clip.split(merged, {key: value.shape for key, value in parts.items()})
    assert all(np.array_equal(back[key], parts[key]) for key in parts)
    assert clip.merge({"a.q_proj.weight": 1}) == {"a.q_proj.weight": 1}              # left for the rules to refuse


def test_a_whole_file_and_its_config(weights, tmp_path):
    np.savez(tmp_path / "clip.npz", **weights)
    config = {"vision_cfg": {"width": 64}, "text_cfg": {"heads": 1}, "quick_gelu": True}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    page, params = clip.load(tmp_path / "clip.npz")
    assert build(page["model"]) == SMALL and page["task"]["shape"] == (8, 8, 3)
    assert jax.tree.structure(params["model"]) == jax.tree.structure(clip.shapes(SMALL))


def test_float16_files_give_float32_parameters(weights):
    params = clip.convert({key: w.astype(np.float16) for key, w in weights.items()}, SMALL)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_a_training_checkpoint_of_openclip(weights, tmp_path):
    torch = pytest.importorskip("torch")
    state = {f"module.{key}": torch.tensor(w) for key, w in weights.items()}
    torch.save({"epoch": 1, "name": "x", "state_dict": state, "optimizer": {"state": {0: {}}}}, tmp_path / "epoch_1.pt")
    _, params = clip.load(tmp_path / "epoch_1.pt", {"vision_cfg": {"width": 64}, "text_cfg": {"heads": 1}, "quick_gelu": True})
    jax.tree.map(np.testing.assert_array_equal, params["model"], clip.convert(weights, SMALL))


def test_the_pixels_that_it_was_trained_on(weights, tmp_path):
    np.savez(tmp_path / "clip.npz", **weights)
    official = {"vision_cfg": {"width": 64}, "text_cfg": {"heads": 1}, "quick_gelu": True}
    half, third = (0.5,) * 3, (0.3,) * 3
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": half, "image_std": third, "size": 8}))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": official}))
    assert build(clip.load(tmp_path / "clip.npz")[0]["model"]) == SMALL.clone(mean=half, std=third)
    preprocess = {"mean": half, "std": half, "interpolation": "bicubic"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": official, "preprocess_cfg": preprocess}))
    assert build(clip.load(tmp_path / "clip.npz")[0]["model"]) == SMALL.clone(mean=half, std=half)


def test_a_config_beside_openais_own_file_is_none_of_its(weights, tmp_path):
    heads = {"text_config": {"num_attention_heads": 2}, "vision_config": {"num_attention_heads": 1}}
    (tmp_path / "config.json").write_text(json.dumps(heads))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": (0.5,) * 3}))
    np.savez(tmp_path / "own.npz", **weights, input_resolution=np.int64(8))
    assert build(clip.load(tmp_path / "own.npz")[0]["model"]) == SMALL
    np.savez(tmp_path / "other.npz", **weights)
    assert build(clip.load(tmp_path / "other.npz")[0]["model"]).text.heads == 2
    (tmp_path / "config.json").write_text('{"text_config": {')
    with pytest.raises(ConfigError, match=r"config\.json does not read as JSON"):
        clip.load(tmp_path / "other.npz")
