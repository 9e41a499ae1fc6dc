"""Official DiT weights: the published key lists on shapes, a small model with its numbers, and files."""
import argparse
import json
from functools import partial
from pathlib import Path

import golden_case
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.cond import Label
from diffusion_jax.models.dit import DiT, preset, stack_layers
from diffusion_jax.pretrained import dit

GOLDENS = Path(__file__).parent.parent / "goldens" / "dit"
KEYS = {path.stem: json.loads(path.read_text()) for path in sorted(GOLDENS.glob("*_keys.json"))}
CASE = golden_case.load(GOLDENS / "dit_psample_8_fixedlarge_clip.json")
OPTIONS = CASE.config["model"]


def structs(doc):
    (keys,) = doc["keys"].values()
    return {key: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for key, shape in keys.items()}


def shape_of(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("name", [                                  # each width and each patch
    name if name.removesuffix("_keys") in ("dit_s_8", "dit_b_4", "dit_l_8", "dit_xl_2_512")
    else pytest.param(name, marks=pytest.mark.slow) for name in KEYS])
def test_published_key_lists_fill_a_model_that_scans(name):
    doc = KEYS[name]
    options, cond_options = dit.config(structs(doc))
    assert (options, cond_options) == dit.config(doc["config"])
    assert preset(doc["model"].split(" ")[0].removesuffix("-512")).items() <= options.items()
    model, cond = DiT(**options, scan=True), Label(**cond_options)
    got = jax.eval_shape(partial(dit.convert, model=model, cond=cond), structs(doc))
    x, one = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1, jnp.int32)
    key = jax.random.key(0)
    want = {"model": jax.eval_shape(model.init, key, x, one, {}), "cond": jax.eval_shape(cond.init, key, {"label": one})}
    assert shape_of(got) == shape_of({name: variables["params"] for name, variables in want.items()})


@pytest.mark.parametrize("scan", [False, True])
def test_weights_come_back_exactly(scan):
    options, cond = dit.config(OPTIONS)
    params = dit.convert(CASE.weights, DiT(**options, scan=scan), Label(**cond))
    back = dit.revert(params, {key: w.shape for key, w in CASE.weights.items()})
    assert back.keys() == CASE.weights.keys()
    for key, w in CASE.weights.items():
        np.testing.assert_allclose(back[key], w, rtol=0, atol=1e-7 if key == "pos_embed" else 0)


def test_another_position_table_is_refused():
    options, cond = dit.config(OPTIONS)
    transposed = CASE.weights["pos_embed"].reshape(3, 3, -1).swapaxes(0, 1).reshape(1, 9, -1)
    with pytest.raises(ConfigError, match="wrong values: pos_embed"):
        dit.convert(CASE.weights | {"pos_embed": transposed}, DiT(**options), Label(**cond))


@pytest.mark.parametrize("kind", ["published", "training"])
def test_files_give_modules_and_parameters(kind, tmp_path):
    torch = pytest.importorskip("torch")
    path = GOLDENS / CASE.doc["state_dict_file"]
    if kind == "training":
        ema = torch.load(path, weights_only=True)
        model = {key: torch.zeros_like(value) for key, value in ema.items()}
        path = tmp_path / "0050000.pt"
        torch.save({"model": model, "ema": ema, "opt": {"state": {}}, "args": argparse.Namespace(model="DiT-XL/2")}, path)
    config, params = dit.load(path, OPTIONS)
    model, cond = build(config["model"]), build(config["task"]["cond"])
    assert model.scan and isinstance(cond, Label)
    want = stack_layers(dit.convert(CASE.weights, model.clone(scan=False), cond))
    jax.tree.map(np.testing.assert_array_equal, params, want)


def test_options_that_are_left_out(tmp_path):
    """Those of the constructor's defaults may be; image_size alone is none of them, others are not taken for weights."""
    left = {key: value for key, value in OPTIONS.items() if key not in dit.DEFAULTS}
    assert dit.config(left) == dit.config(left | dit.DEFAULTS)
    np.savez(tmp_path / "w.npz", **CASE.weights)
    with pytest.raises(ConfigError, match="does not tell the heads"):
        dit.load(tmp_path / "w.npz", {"image_size": 256})
    with pytest.raises(KeyError, match="hidden_size"):
        dit.load(tmp_path / "w.npz", {"patch_size": 2})


def test_what_a_state_dict_cannot_tell_is_asked_for():
    with pytest.raises(ConfigError, match="does not tell the heads of a DiT of width 24: give the official options"):
        dit.config(CASE.weights)
    with pytest.raises(ConfigError, match=r"no state dict of a DiT: there is no x_embedder\.proj\.weight"):
        dit.config({"conv.weight": np.zeros(1)})
