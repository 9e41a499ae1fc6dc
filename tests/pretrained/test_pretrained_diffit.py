"""Official DiffiT weights: files, the options that they tell, the published ways of sampling, and what is refused."""
from functools import partial
from pathlib import Path

import golden_case
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.cond import Label
from diffusion_jax.models.diffit import DiffiT, preset
from diffusion_jax.models.dit import stack_layers
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pretrained import diffit

GOLDENS = Path(__file__).parent.parent / "goldens" / "diffit"
CASE = golden_case.load(GOLDENS / "sample_ddpm10.json")
OPTIONS = CASE.config["model"]


def published(size):
    """The shapes of a published state dict, for latents of `size` pixels."""
    width, tokens = 1152, (size // 2) ** 2
    block = {
        "attn.qkv": (3 * width, width), "attn.qkv_temb": (3 * width, width), "attn.proj": (width, width),
        "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width),
    }
    layers = {f"blocks.{i}.{name}": shape for i in range(28) for name, shape in block.items()}
    layers |= {"x_embedder.proj": (width, 4, 2, 2), "t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width)}
    layers |= {"final_layer.linear": (32, width)}
    shapes = {"pos_embed": (1, tokens, width), "y_embedder.embedding_table.weight": (1001, width)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for i in range(28):
        attention = f"blocks.{i}.attn.relative_position"
        shapes |= {f"{attention}_bias_table": ((size - 1) ** 2, 16), f"{attention}_index": (tokens, tokens)}
    return {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in shapes.items()}


@pytest.mark.parametrize("name, input_size, guidance, schedule", [
    ("DiffiT-256", 32, 4.4, "power_cosine,power=4"), ("DiffiT-512", 64, 1.49, "constant"),
])
def test_a_published_state_dict_tells_its_network_and_its_sampling(name, input_size, guidance, schedule):
    structs = published(input_size)
    assert CASE.weights.keys() <= structs.keys()
    options, cond = diffit.config(structs)
    assert options == preset(name) | dict(mlp_ratio=4.0, channels=4, learn_sigma=True) and cond["num_classes"] == 1000
    model = DiffiT(**options, scan=True)
    got = jax.eval_shape(partial(diffit.convert, model=model, cond=Label(**cond)), structs)
    x = jnp.zeros((1, input_size, input_size, 4))
    want = jax.eval_shape(model.init, jax.random.key(0), x, jnp.zeros(1), {})["params"]
    assert jax.tree.map(jnp.shape, got["model"]) == jax.tree.map(jnp.shape, want)
    sections = diffit.page(options, cond)
    task = build(sections["task"] | {"model": sections["model"]})
    recipe = Recipe.of(sections["sample"])
    assert task.shape == (input_size, input_size, 4) and task.variance == "learned_range"
    assert (recipe.sampler, recipe.steps, recipe.channels) == ("ancestral", 250, 3)
    assert (recipe.guidance, recipe.schedule) == (guidance, schedule)
    recipe.check(task)


def test_weights_come_back_exactly_from_a_file(tmp_path):
    path = tmp_path / "diffit.safetensors"
    save_file({key: np.ascontiguousarray(w) for key, w in CASE.weights.items()}, path)
    config, params = diffit.load(path)
    model, cond = build(config["model"]), build(config["task"]["cond"])
    assert model.scan and isinstance(cond, Label)
    for official in (OPTIONS, {"image_size": 64}):
        told, _ = diffit.load(path, official)
        assert told == config                                   # the state dict tells all that the options tell
    unrolled = diffit.convert(CASE.weights, model.clone(scan=False), cond)
    jax.tree.map(np.testing.assert_array_equal, params, stack_layers(unrolled))
    back = diffit.revert(params, {key: w.shape for key, w in CASE.weights.items()})
    assert back.keys() == CASE.weights.keys()
    for key, w in CASE.weights.items():
        np.testing.assert_allclose(back[key], w, rtol=0, atol=1e-7 if key == "pos_embed" else 0)


def test_a_label_table_without_null_row_is_not_guided():
    model, cond = diffit.config(OPTIONS | {"class_dropout_prob": 0.0})
    sections = diffit.page(model, cond)
    assert sections["sample"]["guidance"] == 1.0 and "schedule" not in sections["sample"]
    assert not sections["task"]["drop"]


def test_another_index_or_size_is_refused():
    options, cond = diffit.config(OPTIONS)
    key = "blocks.1.attn.relative_position_index"
    with pytest.raises(ConfigError, match=f"wrong values: {key} is not the constant"):
        diffit.convert(CASE.weights | {key: CASE.weights[key].T}, DiffiT(**options), Label(**cond))
    with pytest.raises(ConfigError, match="wrong shape: blocks.0.attn.relative_position_bias_table"):
        diffit.convert(CASE.weights, DiffiT(**options | {"grid": 3}), Label(**cond))


def test_what_is_no_diffit_is_refused():
    with pytest.raises(ConfigError, match="no state dict of a DiffiT: there is no blocks.0.attn.relative_position_bias_table"):
        diffit.config({"x_embedder.proj.weight": np.zeros((24, 4, 2, 2))})
