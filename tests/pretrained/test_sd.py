"""A tiny Stable Diffusion of diffusers, saved, imported by our command, and sampled by both; what single files say."""
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import ask
from safetensors.numpy import save_file

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.pictures import save_png
from diffusion_jax.diffusion.samplers import sample
from diffusion_jax.models.cond import Joint, Nothing
from diffusion_jax.models.text_cond import Stack
from diffusion_jax.pipelines import latent
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.pipelines.recipe import Recipe, Strengths
from diffusion_jax.pipelines.session import replayed
from diffusion_jax.pretrained import clip, ldm_text, ldm_unet, sd, systems, vae
from diffusion_jax.runs.folder import Model, open_run
from diffusion_jax.train.state import task_of

STEPS, SCALE = 10, 5.0
KEYS = [json.loads((Path(__file__).parents[1] / f"goldens/ldm/keys_{name}.json").read_text())
        for name in ("ldm_diffusion", "ldm_first_stages", "sd_v1_compvis")]
CHURCHES = {"image_size": 32, "scale_by_std": True, "unet_config": {"params": {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 192, "attention_resolutions": [1, 2, 4, 8],
    "num_res_blocks": 2, "channel_mult": [1, 2, 2, 4, 4], "num_heads": 8, "use_scale_shift_norm": True, "resblock_updown": True,
}}}


def parts(prediction, channels=4):
    """The parts of a random pipeline."""
    torch, diffusers, transformers = (pytest.importorskip(name) for name in ("torch", "diffusers", "transformers"))
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=channels, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        use_linear_projection=prediction == "v_prediction",
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1, latent_channels=4, sample_size=16,
    )
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=49408, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        hidden_act="gelu" if prediction == "v_prediction" else "quick_gelu", projection_dim=32,
    ))
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction,
    )
    return torch, diffusers, unet, vae, text, scheduler


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_diffusers_folder_gives_the_same_images(prediction, tmp_path):
    torch, diffusers, unet, vae, text, scheduler = parts(prediction)
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=None, unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )
    for name, part in (("unet", unet), ("vae", vae), ("text_encoder", text), ("scheduler", scheduler)):
        part.save_pretrained(tmp_path / "sd" / name)
    ask("import_weights", tmp_path / "run", system="sd", source=str(tmp_path / "sd"))
    run = open_run(tmp_path / "run")
    task, params = run.task, run.model.params

    rng = np.random.default_rng(0)
    tokens = np.full((2, 77), 49407)
    tokens[:, 0], tokens[:, 1:6] = 49406, rng.integers(0, 49000, (2, 5))
    raw = {"tokens": jnp.asarray(tokens, jnp.int32)}
    noise = rng.standard_normal((2, 8, 8, 4)).astype(np.float32)
    with torch.no_grad():
        seen, empty = (text(torch.tensor(np.array(t, np.int64)))[0] for t in (tokens, task.cond.null(raw)["tokens"]))
        want = pipe(
            prompt_embeds=seen, negative_prompt_embeds=empty, latents=torch.tensor(noise.transpose(0, 3, 1, 2)),
            guidance_scale=SCALE, num_inference_steps=STEPS, output_type="pt",
        ).images.numpy().transpose(0, 2, 3, 1)

    recipe = Recipe.of({**run.recipe(), "steps": STEPS, "guidance": SCALE})
    assert recipe.sampler == "ddim" and recipe.times == "leading,offset=1,last=0"
    null = task.embed(params, task.cond.null(raw))
    guided = recipe.make_guidance(task, Strengths(jnp.float32(SCALE)), null, jax.random.normal)(task.denoiser(params))
    sampler, times, cond = recipe.make_sampler(task, jax.random.normal), recipe.grid(task.process), task.embed(params, raw)
    x = jax.jit(lambda x: sample(guided, sampler, x, times, cond, jax.random.key(0)))(noise)
    images = np.asarray(latent.decode(run.model, x))
    np.testing.assert_allclose(np.clip(images / 2 + 0.5, 0, 1), want, atol=2e-3)


@pytest.mark.slow
def test_an_imported_folder_is_used_from_the_command_line(tmp_path):
    """Prompts, negative and too long ones, prompts between prompts, image to image, and an inpainted part."""
    *_, unet, vae, text, scheduler = parts("epsilon")
    for name, part in (("unet", unet), ("vae", vae), ("text_encoder", text), ("scheduler", scheduler)):
        part.save_pretrained(tmp_path / "sd" / name)
    run, picture = str(tmp_path / "run"), str(tmp_path / "x.npz")
    ask("import_weights", run, system="sd", source=str(tmp_path / "sd"))
    quick = {"steps": "2", "num": 1}

    def sampled(**options):
        ask("sample", run, **quick | {"out": picture} | options)
        return np.load(picture)["arr_0"]

    plain = sampled(prompt=("a cat",))
    assert plain.shape == (1, 16, 16, 3) and (sampled(prompt=("a cat",), negative="a dog") != plain).any()
    with pytest.raises(ConfigError, match="the last 25 dropped with --truncate"):
        sampled(prompt=("cat " * 100,))
    assert (sampled(prompt=("cat " * 100,), truncate=True) == sampled(prompt=("cat " * 75,))).all()
    start = str(tmp_path / "start.png")
    save_png(tmp_path / "start.png", plain[0])
    for op, options in (("mix", dict(prompt=("a cat",), to_prompt=("a dog",), values=(0, 1))), ("invert", dict(images=start)),
                        ("strength", dict(images=start, prompt=("a dog",), values=(0.5,)))):
        ask("edit", run, **quick | options | {"op": op, "prompt": options.get("prompt", ("a cat",)), "out": str(tmp_path / op)})
    story = {"image": start, "edits": [{"rect": [[0, 0, 8, 16]], "prompt": "a dog", "negative": "a cat", "steps": "2"}]}
    first, second = replayed(pipeline(run), story)
    assert (first[8:] == second[8:]).all() and (first[:8] != second[:8]).any()


@pytest.mark.slow
@pytest.mark.parametrize("channels, condition", [(9, "inpaint"), (7, "low_res")])
def test_networks_with_a_picture_behind_the_latents(channels, condition, tmp_path):
    """Inpainting networks see the mask and what is known, upsamplers the small picture."""
    *_, unet, vae, text, scheduler = parts("epsilon", channels)
    for name, part in (("unet", unet), ("vae", vae), ("text_encoder", text), ("scheduler", scheduler)):
        part.save_pretrained(tmp_path / "sd" / name)
    run, picture = str(tmp_path / "run"), str(tmp_path / "x.png")
    ask("import_weights", run, system="sd", source=str(tmp_path / "sd"))
    rng = np.random.default_rng(0)
    if condition == "inpaint":
        save_png(tmp_path / "x.png", rng.integers(0, 256, (16, 16, 3), np.uint8))
        ways = {"prompt": "a dog", "steps": "2", "guidance": 1.0}
        ends = [replayed(pipeline(run), {"image": picture, "edits": [{"rect": [rect], **ways}]})
                for rect in ([0, 0, 8, 16], [0, 0, 8, 8])]
        assert (ends[0][0][8:] == ends[0][1][8:]).all() and (ends[0][1][:8, :8] != ends[1][1][:8, :8]).any()
        return
    made = []
    for _ in range(2):
        np.savez(tmp_path / "small.npz", arr_0=rng.integers(0, 256, (1, 8, 8, 3), np.uint8))
        ask("sample", run, prompt=("a dog",), low_res=str(tmp_path / "small.npz"), num=1, steps="2",
            out=str(tmp_path / "made.npz"))
        made.append(np.load(tmp_path / "made.npz")["arr_0"])
    assert made[0].shape == (1, 16, 16, 3) and (made[0] != made[1]).any()


def scheduled(folder):
    """A folder with a scheduler that samples as Stable Diffusion's does."""
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"} | {
        "steps_offset": 1, "clip_sample": False}))


def test_a_folder_without_weights_says_so(tmp_path):
    scheduled(tmp_path)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({
        "block_out_channels": [32], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "layers_per_block": 1,
        "in_channels": 4, "out_channels": 4, "cross_attention_dim": 8,
    }))
    with pytest.raises(ConfigError, match="holds no weights"):
        ask("import_weights", tmp_path / "run", system="sd", source=str(tmp_path))


def zeros(shapes, prefix="", value=0.0):
    """Weights that take no memory."""
    return {prefix + key: np.broadcast_to(np.float32(value), shape) for key, shape in shapes.items()}


def sketch(width, tokens):
    """What tells a published network: the shapes of a few weights."""
    shapes = {"time_embed.0.weight": (1, width), "input_blocks.0.0.weight": (width, 4, 3, 3), "out.2.weight": (4, width, 3, 3)}
    return zeros(shapes | ({"middle_block.1.0.attn2.to_k.weight": (1, tokens)} if tokens else {}), sd.UNET)


def single(name, stage):
    """The weights of a published file, of which shapes matter, and its yaml."""
    networks, stages, stable = KEYS
    if name == "lsun_churches256":
        weights, yaml = sketch(192, 0) | {"scale_factor": np.float32(0.25)}, CHURCHES
    elif name == "sd_v1":
        weights, yaml = zeros(stable["keys"]["unet"] | stable["keys"]["text_encoder"]), stable["config"]
    else:
        weights, yaml = zeros(networks["keys"][name]), networks["config"][name]
    averages = {key.removeprefix("model.").replace(".", ""): w.shape for key, w in weights.items() if key.startswith(sd.UNET)}
    return weights | zeros(averages, "model_ema.", 1.0) | zeros(stages["keys"][stage], sd.FIRST), yaml


@pytest.fixture
def seen(monkeypatch):
    """The weights of networks that were converted, in a list; nothing is computed."""
    found = []
    monkeypatch.setattr(ldm_unet, "convert", lambda network, *modules: found.append(network) or {"model": {}, "cond": {}})
    for module, name in ((vae, "convert"), (ldm_text, "convert_bert"), (clip, "convert")):
        monkeypatch.setattr(module, name, lambda *given: {})
    return found


@pytest.mark.parametrize("given", ["nothing", "yaml"])
@pytest.mark.parametrize("name, stage, scale, side, average", [
    ("sd_v1", "kl-f8", 0.18215, 64, False), ("text2img_1p4B", "kl-f8", 0.18215, 32, False),
    ("cin256_v2", "vq-f4", 1.0, 64, False), ("celeba256", "vq-f4", 1.0, 64, True), ("lsun_churches256", "kl-f8", 0.25, 32, True),
    ("inpainting_big", "vq-f4-noattn", 1.0, 64, True), ("bsr_sr", "vq-f4", 1.0, 64, True),
])
def test_what_a_published_file_says(seen, name, stage, scale, side, average, given):
    weights, yaml = single(name, stage)
    page, _ = sd.from_file(weights, yaml if given == "yaml" else {})
    task = task_of(page)
    assert task.first_stage.scale == pytest.approx(scale) and task.shape[:2] == (side, side)
    assert page["task"]["scale"]["name"].endswith(":Eps")
    assert {float(w[(0,) * w.ndim]) for w in seen[0].values()} == {float(average)}
    assert getattr(task.cond, "mask_last", False) == (name == "inpainting_big")
    if name == "lsun_churches256":
        assert build(page["model"]) == build(ldm_unet.config(CHURCHES["unet_config"]["params"])[0])


def test_a_yaml_without_a_scale_means_one(seen):
    weights, yaml = single("sd_v1", "kl-f8")
    page, _ = sd.from_file(weights, {key: value for key, value in yaml.items() if key != "scale_factor"})
    assert page["task"]["first_stage"]["scale"] == 1


def test_stable_diffusion_2_is_asked_what_it_is(seen):
    weights = sketch(320, 1024) | zeros(KEYS[1]["keys"]["kl-f8"], sd.FIRST)
    for official in ({}, {"parameterization": "v"}, {"image_size": 96}):
        with pytest.raises(ConfigError, match="--official with parameterization, 'v' or 'eps', and image_size.*96 for 768-v"):
            sd.from_file(weights, official)
    page, _ = sd.from_file(weights, {"parameterization": "v", "image_size": 96})
    assert page["task"]["scale"]["name"].endswith(":V") and page["task"]["first_stage"]["shape"] == (768, 768, 3)


def test_classes_beside_a_text_are_refused(seen, tmp_path, monkeypatch):
    weights, yaml = single("sd_v1", "kl-f8")
    network = {"params": yaml["unet_config"]["params"] | {"num_classes": 10}}
    with pytest.raises(ConfigError, match="table of classes beside another conditioner"):
        sd.from_file(weights, yaml | {"unet_config": network})
    for part in ("unet", "text_encoder"):
        (tmp_path / part).mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({
        "block_out_channels": [32], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "layers_per_block": 1,
        "in_channels": 4, "out_channels": 4, "num_class_embeds": 10,
    }))
    scheduled(tmp_path)
    monkeypatch.setattr(sd, "weights", lambda folder: {})
    with pytest.raises(ConfigError, match="table of classes beside another conditioner"):
        sd.from_folder(tmp_path)


FOLDERS = {                                # a model_index.json, --official, and what is said of them
    "two texts": ({"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, {}, "has a text_encoder_2, which"),
    "an adapter": ({"image_encoder": ["transformers", "X"]}, {}, "has a image_encoder"),
    "a scheduler of no use": ({"image_encoder": [None, None]}, {}, "'KDPM2DiscreteScheduler': give the _class_name"),
    "another one": ({}, {"scheduler": {"_class_name": "PNDMScheduler"}}, "skip_prk_steps False"),
    "a misspelt option": ({}, {"schedular": {}}, "--official for a folder 'schedular': did you mean 'scheduler'"),
    "no mapping": ({}, {"scheduler": "DDIMScheduler"}, "scheduler of --official is a mapping"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_what_a_folder_says_of_itself_is_read_first(name, tmp_path):
    """Before its weights, which are not there."""
    index, official, says = FOLDERS[name]
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"} | index))
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "KDPM2DiscreteScheduler"}))
    with pytest.raises(ConfigError, match=says) as error:
        sd.load(tmp_path, official)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key, value", [
    ("block_out_channels", []), ("block_out_channels", "32"), ("block_out_channels", [0]), ("block_out_channels", [[32]]),
    ("block_out_channels", None), ("block_out_channels", [10**12]), ("down_block_types", 3), ("attention_head_dim", 0),
    ("attention_head_dim", {}), ("norm_num_groups", "many"), ("in_channels", [4]), ("sample_size", -1), ("layers_per_block", -1),
])
def test_options_of_another_kind_are_one_line(tmp_path, key, value):
    scheduled(tmp_path)
    (tmp_path / "unet").mkdir()
    unet = {"block_out_channels": [32], "layers_per_block": 1, "in_channels": 4, "out_channels": 4, "attention_head_dim": 4,
            "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"], "cross_attention_dim": 8}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(unet | {key: value}))
    save_file({"conv_in.weight": np.zeros((32, 4, 3, 3), np.float32)}, tmp_path / "unet" / "model.safetensors")
    with pytest.raises(ConfigError) as error:
        systems.load("sd", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part, key, value", [
    ("unet", "class_embeddings_concat", True), ("unet", "attention_type", "gated"),
    ("unet", "encoder_hid_dim", 768), ("unet", "time_embedding_type", "fourier"), ("vae", "shift_factor", 0.06),
    ("vae", "latents_mean", [0, 0, 0, 0]), ("vae", "use_quant_conv", False), ("vae", "act_fn", "relu"),
])
def test_options_of_parts_that_change_what_they_do_are_refused(part, key, value):
    network = {"block_out_channels": [32], "layers_per_block": 1, "in_channels": 4, "out_channels": 4}
    unet = network | {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    encoder = network | {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"], "latent_channels": 4}
    read, plain = {"unet": (ldm_unet.diffusers_config, unet), "vae": (vae.diffusers_config, encoder)}[part]
    read(plain)
    with pytest.raises(ConfigError, match=f"no network here has {key}"):
        read(plain | {key: value})


def test_both_forms_of_what_inpainting_networks_see():
    """Stable Diffusion's: the mask first, grey below it; latent diffusion's: the mask last, in [-1, 1], black below it."""
    images, hole = np.full((1, 4, 4, 3), 0.5, np.float32), np.float32(np.arange(4) < 2)[None, :, None, None].repeat(4, 2)
    mask, grey = 1 - hole, images * (1 - hole)
    first, last = np.concatenate([hole, grey], axis=-1), np.concatenate([grey - hole, 2 * hole - 1], axis=-1)
    own = Stack("inpaint", 4, mask_last=True)
    for cond, want in ((Stack("inpaint", 4), first), (own, last), (Joint((Nothing(), own)), last)):
        task = SimpleNamespace(cond=cond, shape=(4, 4, 3), picture_shape=(4, 4, 3), autoencoder=None)
        np.testing.assert_array_equal(latent.inpaint_condition(Model({}, None, task), images, mask)["inpaint"], want)
