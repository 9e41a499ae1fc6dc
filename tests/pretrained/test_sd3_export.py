"""Stable Diffusion 3 for single files and diffusers: there and back, what is written and what is refused."""
import json

import jax
import numpy as np
import pytest
from exports import refused, same
from safetensors.numpy import load_file
from sd3_parts import page, params_of

from diffusion_jax.pretrained import export, package, sd3_export, systems
from diffusion_jax.train.state import task_of


@pytest.fixture(scope="module")
def model():
    """(page, parameters)."""
    spec = page()
    return spec, params_of(spec)


def changed(spec, **leaves):
    """A page with other leaves, 'task.cond.clip_skip' for example with __ for the dots."""
    spec = json.loads(json.dumps(spec))
    for path, value in leaves.items():
        *parents, last = path.split("__")
        section = spec
        for name in parents:
            section = section[name]
        section[last] = value
    return spec


def test_a_single_file_comes_back(model, tmp_path):
    spec, params = model
    assert export.of_page(spec).name == "sd3"
    written = export.package(*model, "original")
    assert written.command.endswith("--source FOLDER/model.safetensors --workdir runs/sd3") and "from_single_file" in written.code
    keys = set(written.files["model.safetensors"])
    assert not any("quant_conv" in key for key in keys) and "model.diffusion_model.pos_embed" in keys
    package.write(tmp_path / "out", written.files)
    _, again = systems.load("sd3", tmp_path / "out" / "model.safetensors")
    same(params, again)
    shapes = {key: value.shape for key, value in load_file(tmp_path / "out" / "model.safetensors").items()}
    few = {key: shapes[key] for key in list(shapes)[:5]}
    same(sd3_export.export(spec, params, few), {key: written.files["model.safetensors"][key] for key in few})


def test_a_folder_says_what_is_in_it_and_how_it_is_loaded(model):
    written = export.package(*model, "diffusers")
    index = written.files["model_index.json"]
    assert index["_class_name"] == "StableDiffusion3Pipeline" and index["text_encoder_3"] == ["transformers", "T5EncoderModel"]
    assert 'from_pretrained("FOLDER", tokenizer=None, tokenizer_2=None, tokenizer_3=None)' in written.code
    assert written.files["vae/config.json"]["shift_factor"] == 0.0609 and not written.files["vae/config.json"]["use_quant_conv"]
    assert written.files["transformer/config.json"] | {"_class_name": ""} == dict(
        _class_name="", sample_size=4, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=130, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4, pos_embed_max_size=8,
        dual_attention_layers=[0], qk_norm="rms_norm")
    assert any("No tokenizer is written" in note for note in written.notes)


def test_maps_of_a_trained_autoencoder_go_into_the_folder_and_into_no_single_file(model, tmp_path):
    spec, params = model
    stage = dict(params["first_stage"]["model"])
    stage["quant"] = {"kernel": stage["quant"]["kernel"] * 2, "bias": stage["quant"]["bias"]}
    other = params | {"first_stage": {"model": stage}}
    written = export.package(spec, other, "diffusers")
    assert written.files["vae/config.json"]["use_quant_conv"]
    package.write(tmp_path / "out", written.files)
    same(systems.load("sd3", tmp_path / "out")[1], other)
    refused(spec, other, "original", "without maps between its halves")


@pytest.mark.parametrize("to, changes, says", [
    ("original", dict(task__first_stage__scale=1.0), "no scale and shift of the latents"),
    ("original", dict(model__mlp_ratio=2.0), "no mlp_ratio 2.0"), ("diffusers", dict(model__skip=[1]), "no skip"),
    ("diffusers", dict(task__first_stage__scale=[1.0, 1.0, 2.0, 1.0]), "one scale and one shift"),
    ("diffusers", dict(task__process={"name": "diffusion_jax.diffusion.process:Cosine"}), "velocities of a flow"),
    ("diffusers", dict(task__first_stage=None), "makes latents"),
    ("diffusers", dict(task__cond={"name": "diffusion_jax.models.cond:Nothing"}), "reads a text with SD3Text"),
    ("diffusers", dict(task__shape=[4, 6, 4]), "squares"),
])
def test_what_has_no_counterpart_is_refused_in_one_line(model, to, changes, says):
    spec, params = model
    refused(changed(spec, **changes), params, to, says)


@pytest.mark.slow
def test_diffusers_makes_the_same_of_what_was_written(model, tmp_path):
    """The transformer, the autoencoder and the texts, each by diffusers' or transformers' own class."""
    torch, diffusers, transformers = (pytest.importorskip(name) for name in ("torch", "diffusers", "transformers"))
    spec, params = model
    package.write(tmp_path / "out", export.package(spec, params, "diffusers").files)
    without = dict.fromkeys(("tokenizer", "tokenizer_2", "tokenizer_3"))
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path / "out", **without)
    task = task_of(spec)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 30, (2, task.cond.length)).astype(np.int32)
    cond = jax.jit(task.embed)(params, {"tokens": tokens})
    ids = torch.tensor(tokens.astype(np.int64))
    with torch.no_grad():
        pooled = [pipe.text_encoder(ids[:, :8]).text_embeds, pipe.text_encoder_2(ids[:, 8:16]).text_embeds]
        np.testing.assert_allclose(cond["vec"], torch.cat(pooled, -1).numpy(), atol=1e-4)
        np.testing.assert_allclose(cond["seq"][:, 8:], pipe.text_encoder_3(ids[:, 16:])[0].numpy(), atol=1e-4)
        x, t = np.float32(rng.standard_normal((2, 4, 4, 4))), np.float32([0.9, 0.2])
        out = pipe.transformer(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(np.array(cond["seq"])),
                               torch.tensor(np.array(cond["vec"])), torch.tensor(1000 * t)).sample.numpy()
        image = pipe.vae.decode(torch.tensor(x.transpose(0, 3, 1, 2)) / 1.5305 + 0.0609).sample.numpy()
    ours = jax.jit(task.model.apply)({"params": params["model"]}, x, 1000 * t, cond)
    np.testing.assert_allclose(ours, out.transpose(0, 2, 3, 1), atol=2e-3 * np.abs(out).max())
    decoded = jax.jit(task.first_stage.decode)(params["first_stage"], x)
    np.testing.assert_allclose(decoded, image.transpose(0, 2, 3, 1), atol=1e-4)
    package.write(tmp_path / "one", export.package(spec, params, "original").files)
    file, config = str(tmp_path / "one/model.safetensors"), str(tmp_path / "out/transformer")
    again = diffusers.SD3Transformer2DModel.from_single_file(file, config=config)
    for key, value in again.state_dict().items():
        assert torch.equal(value, pipe.transformer.state_dict()[key]), key
    assert isinstance(pipe.text_encoder_3, transformers.T5EncoderModel)
