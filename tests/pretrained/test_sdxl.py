"""Stable Diffusion XL, folders and single files: there and back, what is refused; and against diffusers itself."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exports import filled, refused, same
from pages import ask
from safetensors.numpy import save_file

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.samplers import sample
from diffusion_jax.pipelines import latent
from diffusion_jax.pipelines.recipe import Recipe, Strengths
from diffusion_jax.pretrained import export, package, sdxl, sdxl_export, systems, vae
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.runs.folder import Model
from diffusion_jax.train.state import task_of

CLIP = dict(name="diffusion_jax.models.clip:TextTower", vocab=514, context=8, width=64, layers=2, heads=1, hidden=256)
SIDE = 4
OF_FILE = {"num_head_channels": 16, "image_size": SIDE}


def page(refiner=False):
    """The sections of a page: a level without attention, and two of other depths; the refiner has one text."""
    autoencoder = dict(name="diffusion_jax.models.vae:KL", channels=3, latent=4, inner=4, width=32, mults=(1, 2), depth=1)
    first = dict(name="diffusion_jax.tasks.autoencoder:Autoencoder", model=autoencoder, scale=0.13025,
                 shape=(2 * SIDE, 2 * SIDE, 3))
    sizes = (2 * SIDE, 2 * SIDE, 0, 0, *((6.0,) if refiner else (2 * SIDE, 2 * SIDE)))
    cond = dict(
        name="diffusion_jax.models.sdxl_text:XLText", clip_g=CLIP | dict(features=9, act="gelu"), width=128, context=8, waves=10,
        clip_l=None if refiner else CLIP | dict(features=None, act="quick_gelu"), sizes=sizes, zeros=not refiner,
    )
    cond |= {"negative_sizes": (*sizes[:-1], 2.5)} if refiner else {}
    task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion", cond=cond, first_stage=first, shape=(SIDE, SIDE, 4),
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="scaled_linear", steps=1000, zero_snr=False,
                     start=0.00085, end=0.012),
        scale=dict(name="diffusion_jax.diffusion.scales:Eps"),
    )
    model = dict(name="diffusion_jax.models.unet:UNet", width=32, mults=(1, 2, 2), depth=1, attend=(2, 4), scale_shift=False,
                 resample="conv", heads=1, head_channels=16, transformer=(1, 1, 2), channels=4, learn_sigma=False)
    return dict(model=model, task=task, data=dict(decode=dict(name="diffusion_jax.data.image:Decode", size=2 * SIDE)),
                sample=dict(sampler="euler", times="leading,offset=1,last=-1", steps=50, guidance=5.0))


def params_of(spec):
    """Random parameters of a page, with those of its first stage."""
    task = task_of(spec)
    batch = {"image": jnp.zeros((1, 2 * SIDE, 2 * SIDE, 3)), "tokens": jnp.zeros((1, task.cond.length), jnp.int32)}
    params = jax.tree.map(lambda leaf: 4 * leaf, filled(shapes_of(task.init, jax.random.key(0), batch)))
    return params | {"first_stage": {"model": filled(vae.shapes(task.first_stage.model))}}


@pytest.fixture(scope="module", params=["base", "refiner"])
def model(request):
    """(page, parameters)."""
    spec = page(request.param == "refiner")
    return spec, params_of(spec)


def plain(value):
    return json.loads(json.dumps(value))


def test_a_folder_and_a_file_come_back(model, tmp_path):
    spec, params = model
    refiner = spec["task"]["cond"]["clip_l"] is None
    assert export.of_page(spec).name == "sdxl"
    official = tmp_path / "official.json"
    official.write_text(json.dumps(OF_FILE))
    for to, file, told in (("diffusers", "", None), ("original", package.WEIGHTS, official)):
        written = export.package(spec, params, to)
        package.write(tmp_path / to, written.files)
        back, again = systems.load("sdxl", tmp_path / to / file, told)
        same(params, again)
        back["task"]["cond"]["clip_g"] |= {"hidden": CLIP["hidden"]}                    # four times the width, said or not
        assert task_of(back) == task_of(spec) and plain(back["sample"]) == plain(spec["sample"])
        assert ("Img2Img" in written.code) == refiner
        tokenizer = back["data"]["decode"]["tokenizer"]
        assert tokenizer["name"].endswith(":ClipBPE" if refiner else ":SD3Tokens") and tokenizer["merges"] == ""
    index = export.package(spec, params, "diffusers").files["model_index.json"]
    assert index["_class_name"].startswith("StableDiffusionXL") and index["force_zeros_for_empty_prompt"] != refiner


def test_weights_of_a_file_by_their_keys():
    spec = page()
    params = params_of(spec)
    files = sdxl_export.write(spec, params).files[package.WEIGHTS]
    few = {key: files[key].shape for key in list(files)[::40]}
    same(sdxl_export.export(spec, params, few), {key: files[key] for key in few})
    assert files["model.diffusion_model.label_emb.0.0.weight"].shape == (128, 9 + 6 * 10)
    assert {key.split(".")[0] for key in files} == {"model", "first_stage_model", "conditioner"}


def changed(spec, **leaves):
    """A page with other leaves, with __ for the dots of their places."""
    spec = plain(spec)
    for path, value in leaves.items():
        *parents, last = path.split("__")
        section = spec
        for name in parents:
            section = section[name]
        section[last] = value
    return spec


@pytest.mark.parametrize("to, changes, says", [
    ("original", dict(model__groups=16), "no groups 16"),
    ("original", dict(task__cond__clip_g__act="quick_gelu"), "no act"),
    ("diffusers", dict(model__scale_shift=True), "no scale_shift True"),
    ("diffusers", dict(task__cond__clip_skip=1), "no clip_skip 1"),
    ("diffusers", dict(task__cond__clip_l=None), "one alone is the refiner's"),
    ("diffusers", dict(task__first_stage=None), "makes latents"),
])
def test_what_the_published_has_not_is_refused(to, changes, says):
    refused(changed(page(), **changes), params_of(page()), to, says)


def test_what_a_file_does_not_hold_is_said():
    written = export.package(changed(page(), task__first_stage__scale=1.0), params_of(page()), "original")
    assert any("scaled by 1, not 0.13025" in note for note in written.notes)
    assert any("heads of the UNet" in note for note in written.notes)


def test_what_is_no_xl_is_refused_in_one_line(tmp_path):
    files = sdxl_export.write(page(), params_of(page())).files[package.WEIGHTS]
    cases = {
        "a part is missing": {key: value for key, value in files.items() if "label_emb" not in key},
        "optimizer.0 is not of one": files | {"optimizer.0": np.zeros(1)},
        "neither 6 sizes": files | {"model.diffusion_model.label_emb.0.0.weight": np.zeros((128, 20), np.float32)},
    }
    for says, weights in cases.items():
        save_file({key: np.asarray(value) for key, value in weights.items()}, tmp_path / "x.safetensors")
        with pytest.raises(ConfigError, match=says) as error:
            sdxl.load(tmp_path / "x.safetensors", OF_FILE)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="unknown option of --official for a file 'num_heads'"):
        sdxl.load(tmp_path / "x.safetensors", {"num_heads": 1})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no unet, which a whole Stable Diffusion XL has"):
        sdxl.load(tmp_path / "empty")


@pytest.mark.slow
def test_images_are_those_of_diffusers_pipeline(tmp_path):
    """Ten steps of Euler with guidance away from nothing said, the same weights and noise: alike to a thousandth."""
    torch, diffusers, transformers = (pytest.importorskip(name) for name in ("torch", "diffusers", "transformers"))
    spec = page()
    params = params_of(spec)
    package.write(tmp_path / "xl", export.package(spec, params, "diffusers").files)
    kinds = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL,
             "scheduler": diffusers.EulerDiscreteScheduler, "text_encoder": transformers.CLIPTextModel,
             "text_encoder_2": transformers.CLIPTextModelWithProjection}
    parts = {name: kind.from_pretrained(tmp_path / "xl" / name) for name, kind in kinds.items()}
    pipe = diffusers.StableDiffusionXLPipeline(**parts, tokenizer=None, tokenizer_2=None, add_watermarker=False)
    rng = np.random.default_rng(0)
    tokens = np.concatenate([np.array([[512, 5, 77, 300, *[513] * 4]] * 2), np.array([[512, 5, 77, 300, 513, 0, 0, 0]] * 2)], 1)
    tokens[1, [2, 10]] = 99
    noise = rng.standard_normal((2, SIDE, SIDE, 4)).astype(np.float32)
    with torch.no_grad():
        states = [parts[name](torch.tensor(tokens[:, at]), output_hidden_states=True)
                  for name, at in (("text_encoder", slice(0, 8)), ("text_encoder_2", slice(8, 16)))]
        seq = torch.cat([state.hidden_states[-2] for state in states], dim=-1)
        pooled = states[1].text_embeds
        latents = pipe(
            prompt_embeds=seq, pooled_prompt_embeds=pooled, negative_prompt_embeds=torch.zeros_like(seq),
            negative_pooled_prompt_embeds=torch.zeros_like(pooled), latents=torch.tensor(noise.transpose(0, 3, 1, 2)),
            guidance_scale=5.0, num_inference_steps=10, output_type="latent", height=2 * SIDE, width=2 * SIDE,
        ).images
        pictures = parts["vae"].decode(latents / 0.13025).sample

    back, again = systems.load("sdxl", tmp_path / "xl")
    task, raw = task_of(back), {"tokens": jnp.asarray(tokens, jnp.int32)}
    cond = task.embed(again, raw)
    np.testing.assert_allclose(cond["seq"], seq, atol=1e-4)
    recipe = Recipe.of({**back["sample"], "steps": 10})
    null = task.embed(again, task.cond.null(raw))
    guided = recipe.make_guidance(task, Strengths(jnp.float32(5)), null, jax.random.normal)(task.denoiser(again))
    sampler, times = recipe.make_sampler(task, jax.random.normal), recipe.grid(task.process)
    x = jax.jit(lambda x: sample(guided, sampler, x, times, cond, jax.random.key(0)))(recipe.temperature * noise)
    model = Model({key: value for key, value in again.items() if key != "first_stage"}, again["first_stage"], task)
    for got, want in ((x, latents), (latent.decode(model, x), pictures)):
        want = want.numpy().transpose(0, 2, 3, 1)
        assert np.abs(np.asarray(got) - want).mean() < 1e-3 * want.std()


@pytest.mark.slow
def test_an_imported_folder_is_used_from_the_command_line(tmp_path):
    """Prompts; a negative one in place of nothing said; what was imported is exported."""
    spec = page()
    package.write(tmp_path / "xl", export.package(spec, params_of(spec), "diffusers").files)
    run, picture = str(tmp_path / "run"), str(tmp_path / "x.npz")
    ask("import_weights", run, system="sdxl", source=str(tmp_path / "xl"))

    def sampled(**options):
        ask("sample", run, **{"steps": "2", "num": 1, "out": picture} | options)
        return np.load(picture)["arr_0"]

    plain_one = sampled(prompt=("a cat",))
    assert plain_one.shape == (1, 2 * SIDE, 2 * SIDE, 3) and (sampled(prompt=("a cat",), guidance=1.0) != plain_one).any()
    assert (sampled(prompt=("a cat",), negative="a dog") != plain_one).any()
    ask("export_weights", run, to="original", out=str(tmp_path / "out"))
    assert (tmp_path / "out" / package.WEIGHTS).is_file()
