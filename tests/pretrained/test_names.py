"""Tables of rules from right to left: names that published files have, and what has none."""
import numpy as np
import pytest
from exports import GOLDENS
from golden_case import load as load_case

from diffusion_jax.build import ConfigError
from diffusion_jax.pretrained import clip, dit, dvae, edm2, glide, names, perceptual, vae
from diffusion_jax.pretrained.rules import POINT, Rule

NAMES = {
    "model/blocks_3/attn/qkv/kernel": (dit.RULES, "blocks.3.attn.qkv.weight"),
    "cond/table": (dit.RULES, "y_embedder.embedding_table.weight"),
    "model/enc_1_block0/emb_gain": (edm2.RULES, "unet.enc_1_block0.emb_gain"),
    "encoder/down_0_res_1/skip/kernel": (vae.RULES, "encoder.down.0.block.1.nin_shortcut.weight"),
    "encoder/group_1_block_2/conv_4/kernel": (dvae.RULES, "encoder/blocks.group_1.block_2.res_path.conv_4.w"),
    "image/cls": (glide.NOISED, "image/blocks.input.w_t"),
    "text/transformer/blocks_11/norm2/scale": (clip.TEXT, "transformer.resblocks.11.ln_2.weight"),
    "w_3": (perceptual.LPIPS_RULES, "lin2.model.1.weight"),
    "vgg/stage_2_conv_1/bias": (perceptual.LPIPS_RULES, "net.slice2.7.bias"),
}


@pytest.mark.parametrize("path", NAMES)
def test_a_path_has_its_published_name(path):
    table, key = NAMES[path]
    assert names.name(path, table)[0] == key


def test_what_no_file_has_is_refused():
    with pytest.raises(ConfigError, match="has nothing like model/extra/kernel: its weights cannot be written"):
        names.name("model/extra/kernel", dit.RULES)


def test_shapes_are_the_published_ones():
    case = load_case(GOLDENS / "dit" / "dit_forward_p2_sigma.json")
    model, cond = dit.config(case.config)
    params = dit.convert(case.weights, dit.DiT(**model), dit.Label(**cond))
    special = {key: case.weights[key].shape for key in ("pos_embed", "x_embedder.proj.weight")}
    assert names.shapes(params, dit.RULES, special=special) == {key: w.shape for key, w in case.weights.items()}


def test_axes_of_one_and_wrong_alternatives():
    table = [Rule(r"(a|b)\.(\d+)\.(?:one|two)\.weight", r"\1_\2/kernel", POINT)]
    params = {"a_0": {"kernel": np.zeros((2, 3))}, "b_1": {"kernel": np.zeros((2, 3))}}
    found = names.shapes(params, table, {r"b\..*": 4}, {"c": (1,)}, ((r"(b\.\d)\.one", r"\1.two"),))
    assert found == {"a.0.one.weight": (3, 2), "b.1.two.weight": (3, 2, 1, 1), "c": (1,)}


def test_a_group_that_comes_twice_is_one():
    table = [Rule(r"(\w+)\.x", r"\1/of_\1")]
    assert names.name("a/of_a", table)[0] == "a.x"
    with pytest.raises(ConfigError):
        names.name("a/of_b", table)
