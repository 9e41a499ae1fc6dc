"""Stable Diffusion 3, folders and single files: what is read, what is left out, what is refused; against diffusers itself."""
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from exports import same
from pages import ask
from safetensors.numpy import load_file, save_file
from sd3_parts import page, params_of

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import guidance, samplers
from diffusion_jax.diffusion.flow_times import flow_match
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.pretrained import export, package, sd3, systems
from diffusion_jax.train.state import task_of


@pytest.fixture(scope="module")
def model():
    """(page, parameters)."""
    spec = page()
    return spec, params_of(spec)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """The same as a folder of diffusers."""
    out = tmp_path_factory.mktemp("sd3") / "folder"
    package.write(out, export.package(*model, "diffusers").files)
    return out


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    """The same as a single file."""
    out = tmp_path_factory.mktemp("sd3") / "file"
    package.write(out, export.package(*model, "original").files)
    return out / "model.safetensors"


def test_a_folder_is_read_whole_and_says_how_it_is_sampled(model, folder):
    spec, params = model
    back, again = systems.load("sd3", folder)
    same(params, again)
    assert back["sample"] == spec["sample"]
    assert {key: back["task"][key] for key in ("process", "scale", "shape", "times")} == {
        key: spec["task"][key] for key in ("process", "scale", "shape", "times")}
    assert {key: back["task"]["first_stage"][key] for key in ("scale", "shift", "shape")} == dict(
        scale=1.5305, shift=0.0609, shape=(8, 8, 3))
    tokenizer = back["data"]["decode"]["tokenizer"]
    assert tokenizer["pieces"] == str(folder / "tokenizer_3" / "spiece.model") and tokenizer["length"] == 16 + 256
    assert tokenizer["merges"] == "" and back["model"]["scan"]


def test_t5_is_left_out_on_request_or_where_it_is_missing(model, folder, tmp_path):
    official = tmp_path / "official.json"
    official.write_text('{"t5": false, "scheduler": {"shift": 1.5, "use_karras_sigmas": true}}')
    back, params = systems.load("sd3", folder, official)
    assert set(params["cond"]) == {"clip_l", "clip_g"} and back["task"]["cond"]["t5"] is None
    assert back["data"]["decode"]["tokenizer"]["length"] == 16 and "pieces" not in back["data"]["decode"]["tokenizer"]
    assert back["task"]["process"]["shift"] == 1.5 and back["sample"]["times"] == "flow_match,levels=karras"
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("text_encoder_3"))
    without, _ = systems.load("sd3", tmp_path / "bare")
    assert without["task"]["cond"] == back["task"]["cond"]
    official.write_text('{"t5": true}')
    with pytest.raises(ConfigError, match="has no text_encoder_3: get it, or leave T5 out"):
        systems.load("sd3", tmp_path / "bare", official)


def test_a_single_file_is_read_whole_or_with_files_beside_it(model, file, tmp_path):
    spec, params = model
    back, again = systems.load("sd3", file)
    same(params, again)
    assert {key: value for key, value in back["model"].items() if key != "step"} == {
        key: value for key, value in spec["model"].items() if key != "step"} | {"mlp_ratio": 4.0}
    assert back["model"]["step"] == pytest.approx(0.25, abs=1e-6)          # read off the table, the published is 64 / 8
    whole = load_file(file)
    bare = {key: value for key, value in whole.items() if not key.startswith(sd3.TEXT)}
    save_file(bare, tmp_path / "bare.safetensors")
    with pytest.raises(ConfigError, match="holds no clip_l: give its file in --official"):
        systems.load("sd3", tmp_path / "bare.safetensors")
    names = {}
    for name in ("clip_l", "clip_g"):
        prefix = f"{sd3.TEXT}{name}.transformer."
        names[name] = str(tmp_path / f"{name}.safetensors")
        save_file({key.removeprefix(prefix): value for key, value in whole.items() if key.startswith(prefix)}, names[name])
    (tmp_path / "official.json").write_text(json.dumps(names))
    _, again = systems.load("sd3", tmp_path / "bare.safetensors", tmp_path / "official.json")
    same({name: params["cond"][name] for name in names}, again["cond"])


@pytest.mark.slow
def test_an_imported_run_is_sampled_from_a_prompt_and_trained_on(folder, tmp_path):
    official = tmp_path / "official.json"
    official.write_text('{"t5": false}')
    ask("import_weights", tmp_path / "run", system="sd3", source=str(folder), official=str(official))
    pipe = pipeline(tmp_path / "run").using(steps=3)
    one, other = (pipe("cat", num=1, seed=0).images, pipe("dog", num=1, seed=0).images)
    assert one.shape == (1, 8, 8, 3) and one.dtype == np.uint8 and (one != other).any()
    run = pipe.run
    batch = {"image": np.zeros((2, 4, 4, 4), np.float32), "tokens": run.tokens(["a", "b"])}
    loss, grads = jax.value_and_grad(lambda p: run.task.loss(p, {}, batch, jax.random.key(0), True)[0])(run.model.params)
    assert np.isfinite(loss) and np.any(grads["model"]["patch"]["kernel"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["cond"]))


@pytest.mark.slow
def test_shards_and_variants_are_read(model, folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "parts")
    weights = tmp_path / "parts" / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = load_file(weights)
    weights.unlink()
    names = {key: f"part{i % 2}.safetensors" for i, key in enumerate(whole)}
    for part in set(names.values()):
        save_file({key: value for key, value in whole.items() if names[key] == part}, weights.parent / part)
    (weights.parent / f"{weights.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    half = tmp_path / "parts" / "text_encoder" / "model.fp16.safetensors"
    save_file({key: value.astype(np.float16) for key, value in load_file(half.parent / "model.safetensors").items()}, half)
    (half.parent / "model.safetensors").unlink()
    _, params = systems.load("sd3", tmp_path / "parts")
    same(model[1]["model"], params["model"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), params["cond"], model[1]["cond"])
    assert "model.fp16.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize("change, says", [
    ({"model_index.json": {"controlnet": ["diffusers", "SD3ControlNetModel"]}}, "has a controlnet"),
    ({"transformer/config.json": {"dual_attention_layers": [1]}}, "second attention in the blocks"),
    ({"transformer/config.json": {"qk_norm": "layer_norm"}}, "qk_norm 'layer_norm'"),
    ({"transformer/config.json": {"out_channels": 8}}, "other out_channels"),
    ({"scheduler/scheduler_config.json": {"use_dynamic_shifting": True}}, "use_dynamic_shifting True"),
    ({"scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler"}}, "predicts velocities of a flow"),
    ({"text_encoder_3/config.json": {"feed_forward_proj": "relu"}}, "feed_forward_proj 'relu'"),
    ({"vae/config.json": {"shift_factor": "much"}}, "shift_factor"),
])
def test_what_has_no_counterpart_is_refused_in_one_line(change, says, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "sd3", copy_function=lambda one, other: shutil.copy(one, other))
    for name, options in change.items():
        config = tmp_path / "sd3" / name
        config.write_text(json.dumps(json.loads(config.read_text()) | options))
    with pytest.raises(ConfigError, match=says) as error:
        systems.load("sd3", tmp_path / "sd3")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("official, says", [
    ('{"clip_l": "x"}', "option of --official for a folder 'clip_l'"), ('{"t5": 1}', "t5 is true or false"),
    ('{"scheduler": 3}', "scheduler is a mapping"),
])
def test_options_that_nobody_reads_are_refused(official, says, folder, tmp_path):
    (tmp_path / "official.json").write_text(official)
    with pytest.raises(ConfigError, match=says):
        systems.load("sd3", folder, tmp_path / "official.json")


def test_a_file_of_something_else_is_refused(file, tmp_path):
    whole = load_file(file)
    save_file({"model_ema.decay": whole[next(iter(whole))]} | whole, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="model_ema.decay is not of one"):
        systems.load("sd3", tmp_path / "x.safetensors")
    key = f"{sd3.NETWORK}joint_blocks.1.x_block.mlp.fc1.bias"
    save_file({name: value for name, value in whole.items() if name != key}, tmp_path / "y.safetensors")
    with pytest.raises(ConfigError, match="missing: joint/blocks_0/x_mlp/fc1/bias"):
        systems.load("sd3", tmp_path / "y.safetensors")


# Against diffusers ----------------------------------------------------------------------------------------------------------


class Ids:
    """Stands for a tokenizer of transformers: prompt -> its numbers, whatever else is asked."""

    model_max_length = 77

    def __init__(self, torch, rows):
        self.torch, self.rows = torch, rows

    def __call__(self, prompts, **options):
        return SimpleNamespace(input_ids=self.torch.tensor(np.stack([self.rows[prompt] for prompt in prompts])))

    def batch_decode(self, *args, **options):
        return ""


def texts(length, start, end, fill, largest, rng):
    """The numbers of a prompt of six tokens, and of the empty one."""
    rows = {}
    for prompt, count in (("a cat", 6), ("", 0)):
        body = [*start, *rng.integers(3, largest, count), end]
        rows[prompt] = np.array(body + [fill] * (length - len(body)))
    return rows


def pipeline_of_diffusers():
    """(torch, the parts of a random pipeline by their folders, the whole of it)."""
    torch, diffusers, transformers = (pytest.importorskip(name) for name in ("torch", "diffusers", "transformers"))
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=3, attention_head_dim=8, num_attention_heads=4, out_channels=16,
        joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=44, pos_embed_max_size=12,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )
    for weight in transformer.parameters():                            # modulations start at zero
        torch.nn.init.normal_(weight, std=1.2 * weight.shape[1] ** -0.5 if weight.ndim == 2 else 0.3)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1, latent_channels=16, sample_size=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
        use_post_quant_conv=False,
    )
    clips = [transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=heads,
        hidden_act=act, projection_dim=out, bos_token_id=0, eos_token_id=2,
    )).eval() for width, heads, act, out in ((16, 2, "quick_gelu", 24), (24, 3, "gelu", 20))]
    t5 = transformers.T5EncoderModel(transformers.T5Config(
        vocab_size=120, d_model=64, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu", dropout_rate=0.0,
        tie_word_embeddings=False,
    )).eval()
    parts = dict(transformer=transformer, vae=vae, text_encoder=clips[0], text_encoder_2=clips[1], text_encoder_3=t5,
                 scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    return torch, parts, diffusers.StableDiffusion3Pipeline(**parts, tokenizer=None, tokenizer_2=None, tokenizer_3=None)


@pytest.mark.slow
def test_a_pipeline_of_diffusers_gives_the_same_images_with_and_without_t5(tmp_path):
    """Ten steps under guidance, from folders in shards."""
    torch, parts, pipe = pipeline_of_diffusers()
    rng = np.random.default_rng(0)
    rows = [texts(77, [49406], 49407, fill, 49000, rng) for fill in (49407, 0)] + [texts(256, [], 1, 0, 119, rng)]
    for name, numbers in zip(("tokenizer", "tokenizer_2", "tokenizer_3"), rows, strict=True):
        object.__setattr__(pipe, name, Ids(torch, numbers))            # which a pipeline would want of a known class
    for name, part in parts.items():
        part.save_pretrained(tmp_path / "sd3" / name, **({} if name == "scheduler" else {"max_shard_size": "60KB"}))
    assert len(list((tmp_path / "sd3/transformer").glob("*.safetensors"))) > 1
    noise = np.float32(rng.standard_normal((1, 8, 8, 16)))
    (tmp_path / "without.json").write_text('{"t5": false}')
    for official in (None, tmp_path / "without.json"):
        if official:
            object.__setattr__(pipe, "text_encoder_3", None)
        options = dict(num_inference_steps=10, guidance_scale=5.0, height=16, width=16, output_type="latent")
        start = torch.tensor(noise.transpose(0, 3, 1, 2))
        with torch.no_grad():
            latent = pipe(prompt=["a cat"], negative_prompt=[""], latents=start, **options).images
            want = parts["vae"].decode(latent / 1.5305 + 0.0609).sample.numpy().transpose(0, 2, 3, 1)
        spec, params = systems.load("sd3", tmp_path / "sd3", official)
        task = task_of(spec)
        tokens = np.concatenate([numbers["a cat"] for numbers in rows])[None, : task.cond.length].astype(np.int32)
        raw = {"tokens": tokens}
        np.testing.assert_array_equal(task.cond.null(raw)["tokens"][0], np.concatenate([n[""] for n in rows])[: task.cond.length])
        denoise = guidance.CFG(5.0, task.embed(params, task.cond.null(raw)))(task.denoiser(params))
        times, sampler = flow_match(task.process, 10), samplers.euler(task.process)
        made = samplers.sample(denoise, sampler, noise, times, task.embed(params, raw), jax.random.key(0))
        np.testing.assert_allclose(task.first_stage.decode(params["first_stage"], made), want, atol=2e-3)
        assert want.std() > 0.1
