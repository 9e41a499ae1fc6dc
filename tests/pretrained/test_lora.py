"""Files of LoRAs: every layout says the same change, and what is of no layout or of another network is named.

tests/goldens/lora has the numbers of diffusers and peft.
"""
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import page
from safetensors.numpy import load_file, save_file

from diffusion_jax.build import ConfigError
from diffusion_jax.nn import lora as low_rank
from diffusion_jax.pretrained import lora, lora_names
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.train.state import plain, task_of

BATCH = {"image": jnp.zeros((1, 8, 8, 1)), "label": jnp.zeros(1, jnp.int32), "tokens": jnp.zeros((1, 8), jnp.int32)}
LAYERS = r"attn|qkv|/proj/|conv1|fc1|emb/|ff_in|ff_out"


def of_page(name):
    """(task, drawn parameters, drawn factors) of a tiny page."""
    task = task_of(plain(page(name)))
    shapes = shapes_of(task.init, jax.random.key(0), BATCH)
    factors = jax.eval_shape(lambda: low_rank.init(jax.random.key(0), shapes, LAYERS, 2))
    rng = np.random.default_rng(0)
    draw = lambda tree: jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), tree)  # noqa: E731
    return task, draw(shapes), draw(factors)


@pytest.fixture(scope="module")
def sd():
    return of_page("stable_diffusion")


@pytest.fixture(scope="module")
def file(sd, tmp_path_factory):
    """Its factors as a file of peft's layout."""
    path = tmp_path_factory.mktemp("lora") / "peft.safetensors"
    assert lora.save(path, sd[0], sd[2], alpha=3.0) == "peft"
    return path


def check(path, sd, scale=1.5):
    """A file changes what the factors do that it was written from, at alpha / rank = 1.5."""
    task, params, factors = sd
    got = lora.merge(params, lora.read(path, task, params), 0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got,
                 low_rank.merged(params, factors, 0.5 * scale))


@pytest.mark.parametrize("layout", lora.LAYOUTS)
def test_what_was_written_changes_the_same(sd, tmp_path, layout):
    path = tmp_path / "x.safetensors"
    assert lora.save(path, sd[0], sd[2], 3.0, layout) == layout
    check(path, sd)
    assert lora.save(path, sd[0], sd[2], None, layout) == layout
    check(path, sd, 1.0)


def test_public_names_and_shapes_are_those_of_diffusers(file, sd, tmp_path):
    shapes = {key: value.shape for key, value in load_file(file).items()}
    assert shapes["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.lora_A.weight"] == (2, 16)
    assert shapes["unet.mid_block.resnets.0.conv1.lora_A.weight"] == (2, 32, 3, 3)
    assert shapes["unet.mid_block.resnets.0.conv1.lora_B.weight"] == (32, 2, 1, 1)
    assert shapes["text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight"] == (16, 2)
    other = tmp_path / "kohya.safetensors"
    lora.save(other, sd[0], sd[2], 3.0, "kohya")
    arrays = load_file(other)
    assert arrays["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.alpha"] == 3
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight" in arrays


@pytest.mark.parametrize("rename", [
    (r"lora_A\.weight", "lora.down.weight", r"lora_B\.weight", "lora.up.weight"),
    (r"^", "base_model.model.", "lora_A", "lora_A.default"), (r"\.text_model\.", ".", "", ""), (r"^unet\.", "", "", ""),
    (r"(attn\d)\.(to_[qkv])\.lora_([AB])\.", r"\1.processor.\2_lora.\3.", r"_lora\.A\.", "_lora.down."),
    (r"self_attn\.([qkv])_proj\.lora_([AB])\.", r"self_attn.to_\1_lora.\2.", r"_lora\.A\.", "_lora.down."),
], ids=["second", "peft", "without text_model", "without unet", "processor", "text"])
def test_other_spellings_of_the_same_names(file, sd, tmp_path, rename):
    def renamed(key):
        for pattern, text in (rename[:2], rename[2:]):
            key = re.sub(pattern, text, key) if pattern else key
        return re.sub(r"_lora\.B\.", "_lora.up.", key)

    path = tmp_path / "x.safetensors"
    save_file({renamed(key): value for key, value in load_file(file).items()}, path)
    assert load_file(path).keys() != load_file(file).keys()
    check(path, sd)


def test_numbered_modules_are_in_the_order_of_the_network(sd, tmp_path, caplog):
    """attn1, GEGLU, attn2 of each transformer, down, up, then the middle; k, v, q, out of each layer of the text encoder."""
    task, params, _ = sd
    known = lora_names.modules(task, params)
    attention = ("to_q", "to_k", "to_v", "to_out.0")
    inside = [*(f"attn1.{name}" for name in attention), "ff.net.0.proj", *(f"attn2.{name}" for name in attention)]
    places = ["down_blocks.0.attentions.0", "up_blocks.0.attentions.0", "up_blocks.0.attentions.1", "mid_block.attentions.0"]
    unet = [f"unet.{place}.transformer_blocks.0.{name}" for place in places for name in inside]
    text = [f"text_encoder.text_model.encoder.layers.0.self_attn.{name}_proj" for name in ("k", "v", "q", "out")]
    assert {*unet, *text} <= known.keys()
    rng = np.random.default_rng(3)
    peft, numbered = {}, {"<s1>": np.zeros(768, np.float32)}
    for part, names in (("unet", unet), ("text_encoder", text)):
        for i, name in enumerate(names):
            kernel = params
            for key in known[name].path.split("/"):
                kernel = kernel[key]
            down, up = (rng.normal(size=shape).astype(np.float32) for shape in (
                (1, kernel.shape[0]), (kernel.shape[1] // known[name].parts, 1)))
            peft |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
            numbered |= {f"{part}:{i}:down": down, f"{part}:{i}:up": up}
    save_file(peft, tmp_path / "peft.safetensors")
    classes = {"unet": '["GEGLU", "CrossAttention", "Attention"]', "text_encoder": '["CLIPAttention"]', "<s1>": "<embed>"}
    save_file(numbered, tmp_path / "x.safetensors", classes)
    one, other = (lora.merge(params, lora.read(tmp_path / f"{name}.safetensors", task, params), 1.0) for name in ("peft", "x"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert "embeddings of the words <s1>, which are left out" in caplog.text
    for changed, says in (('["CrossAttention"]', "changes 36 modules of the unet, of which this model has 32"),
                          ('["ResnetBlock2D"]', "unknown class of modules in")):
        save_file(numbered, tmp_path / "x.safetensors", classes | {"unet": changed})
        with pytest.raises(ConfigError, match=says):
            lora.read(tmp_path / "x.safetensors", task, params)


def test_alphas_beside_the_arrays_go_before_the_rank_and_the_files_own_before_them(file, sd, tmp_path):
    """As diffusers writes the options of peft."""
    arrays = load_file(file)
    options = {"unet.lora_alpha": 4, "unet.alpha_pattern": {"conv1": 8}, "text_encoder.lora_alpha": 2}
    path = tmp_path / "x.safetensors"
    name = "unet.mid_block.resnets.1.conv1"
    save_file(arrays | {f"{name}.alpha": np.float32([5])}, path, {"lora_adapter_metadata": json.dumps(options)})
    by_name = {change.path: change.factor for change in lora.read(path, *sd[:2])}
    assert by_name["model/mid_res_0/conv1/kernel"] == 4 and by_name["model/mid_res_1/conv1/kernel"] == 2.5
    assert by_name["model/mid_attn/block_0/attn1/q/kernel"] == 2 and by_name["cond/tower/transformer/blocks_0/fc1/kernel"] == 1
    for options, says in (({"unet.use_rslora": True}, "rank-stabilised"), ([], "does not read")):
        save_file(arrays, path, {"lora_adapter_metadata": json.dumps(options)})
        with pytest.raises(ConfigError, match=says):
            lora.read(path, *sd[:2])


def test_networks_without_public_names_have_the_plain_layout(sd, tmp_path):
    """Those of scanned layers too, whose factors are stacked."""
    digits = of_page("digits")
    path = tmp_path / "x.safetensors"
    assert lora.save(path, digits[0], digits[2], 3.0) == "plain"
    assert "model/blocks/attn/qkv/kernel.down" in load_file(path)
    check(path, digits)
    with pytest.raises(ConfigError, match="has no name in the layout kohya: write layout='plain'"):
        lora.save(path, digits[0], digits[2], layout="kohya")
    with pytest.raises(ConfigError, match="did you mean 'kohya'"):
        lora.save(path, digits[0], digits[2], layout="koya")
    with pytest.raises(ConfigError, match="is no LoRA of this model: it has no place for model/blocks/attn/proj"):
        lora.read(path, *sd[:2])


KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"


@pytest.mark.parametrize("changes, says", [
    ({"lora_unet_input_blocks_1_1_proj_in.alpha": np.ones(1)}, "it has no place for lora_unet_input_blocks_1_1_proj_in.alpha"),
    ({"unet.conv_in.dora_scale": np.ones(1)}, "no place for unet.conv_in.dora_scale"),
    ({f"{i}.alpha": np.ones(1) for i in range(5)}, r"no place for 0.alpha, 1.alpha, 2.alpha and 2 more"),
    ({f"{KEY}.lora_A.weight": None}, "has only up of its two factors"),
    ({f"{KEY}.lora_A.weight": np.ones((2, 17))}, r"factors \(2, 17\) and \(32, 2\), which do not fit model/mid_attn"),
    ({f"{KEY}.lora_A.weight": np.ones((3, 16))}, r"factors \(3, 16\) and \(32, 2\)"),
    ({f"{KEY}.lora_A.weight": np.ones((2, 16, 1, 1))}, "do not fit"), ({f"{KEY}.lora_B.weight": np.ones(32)}, "do not fit"),
])
def test_what_is_of_another_network_or_damaged_is_named(file, sd, tmp_path, changes, says):
    arrays = {key: value for key, value in (load_file(file) | changes).items() if value is not None}
    save_file({key: np.float32(value) for key, value in arrays.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=says):
        lora.read(tmp_path / "x.safetensors", *sd[:2])
