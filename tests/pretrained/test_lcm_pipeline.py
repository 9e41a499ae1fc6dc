"""Networks that are told the weight of guidance, of Stable Diffusion and XL: folders there and back, and against diffusers."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exports import channels_first, channels_last, filled, refused, same

from diffusion_jax.build import build
from diffusion_jax.diffusion.samplers import pairs_of, start
from diffusion_jax.models.cond import Joint
from diffusion_jax.pipelines.recipe import Recipe, Strengths
from diffusion_jax.pipelines.sampling import embedded
from diffusion_jax.pretrained import export, ldm_unet, package, sd, systems, vae
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.runs.folder import Model
from diffusion_jax.train.state import task_of
from pretrained import test_sd_export, test_sdxl

WAVES = 12
WEIGHT = 8.5


def told(spec):
    """A page whose network is told the weight, as it is sampled."""
    task = spec["task"] | {"cond": sd.with_weight(spec["task"]["cond"], WAVES)}
    how = dict(sampler="lcm", times="distilled", steps=4, guidance=WEIGHT)
    return spec | {"task": task, "sample": spec["sample"] | how}


PAGES = {"sd": told(test_sd_export.page()), "sdxl": told(test_sdxl.page())}


def random(spec):
    """Parameters of a page, with those of its first stage; weights that its output depends on."""
    task = task_of(spec)
    length = task.cond.parts[0].length if hasattr(task.cond.parts[0], "length") else task.cond.parts[0].context
    batch = {"image": jnp.zeros((1, *task.first_stage.shape)), "tokens": jnp.zeros((1, length), jnp.int32)}
    params = jax.tree.map(lambda leaf: 4 * leaf, filled(shapes_of(task.init, jax.random.key(0), batch)))
    return params | {"first_stage": {"model": filled(vae.shapes(task.first_stage.model))}}


@pytest.mark.parametrize("system", ["sd", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_a_folder_there_and_back(system, tmp_path):
    ours = PAGES[system]
    params = random(ours)
    assert export.of_page(ours).name == system and params["model"]["time"]["guidance"]["kernel"].shape == (WAVES, 32)
    written = export.package(ours, params, "diffusers")
    assert written.files["unet/config.json"]["time_cond_proj_dim"] == WAVES
    assert written.files["scheduler/scheduler_config.json"]["_class_name"] == "LCMScheduler"
    package.write(tmp_path / "out", written.files)
    back, again = systems.load(system, tmp_path / "out")
    same(params, again)
    assert back["task"]["cond"]["parts"][1] == ours["task"]["cond"]["parts"][1] and isinstance(build(back["task"]["cond"]), Joint)
    assert Recipe.of(back["sample"]) == Recipe.of(ours["sample"])
    refused(ours, params, "original", "reads no weight of guidance.*--to diffusers")


def test_both_layouts_name_the_layer():
    model = build(PAGES["sd"]["model"])
    keys = {"time_embed.0.weight": (128, 32), "time_embed.cond_proj.weight": (32, WAVES)}
    theirs = {"conv_in.weight": (32, 4, 3, 3), "time_embedding.cond_proj.weight": (32, WAVES)}
    assert ldm_unet.renamed(theirs, model)["time_embed.cond_proj.weight"] == (32, WAVES)
    assert ldm_unet.diffusers_name("time_embed.cond_proj.weight", model) == "time_embedding.cond_proj.weight"
    weights = {name: np.zeros(shape) for name, shape in keys.items()}
    assert ldm_unet.guidance_channels(weights) == WAVES and ldm_unet.guidance_channels({}) == 0


def latents_of(pipe, cond, noise, draws):
    """What a pipeline of diffusers makes of embedded texts in four steps with that noise."""
    import sys

    import torch

    left = iter(draws)
    module = sys.modules[type(pipe.scheduler).__module__]
    module.randn_tensor = lambda shape, **_: channels_first(next(left))
    pooled = {"pooled_prompt_embeds": torch.tensor(cond["pooled"])} if "pooled" in cond else {}
    with torch.no_grad():
        return channels_last(pipe(
            prompt_embeds=torch.tensor(np.array(cond["seq"])), latents=channels_first(noise), guidance_scale=WEIGHT,
            num_inference_steps=4, output_type="latent", **pooled,
        ).images)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LatentConsistencyModelPipeline", "StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_latents_are_those_of_diffusers_pipeline(name, tmp_path):
    """Four steps at weight 8.5, the same weights and noise: less than a thousandth of the latents' deviation apart."""
    diffusers = pytest.importorskip("diffusers")
    ours = PAGES["sdxl" if "XL" in name else "sd"]
    params, task = random(ours), task_of(ours)
    package.write(tmp_path / "out", export.package(ours, params, "diffusers").files)
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out/unet")
    parts = dict(unet=unet, vae=diffusers.AutoencoderKL.from_pretrained(tmp_path / "out/vae"), text_encoder=None, tokenizer=None,
                 scheduler=diffusers.LCMScheduler.from_pretrained(tmp_path / "out/scheduler"))
    checks = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    parts |= dict(text_encoder_2=None, tokenizer_2=None, add_watermarker=False) if "XL" in name else checks
    pipe = getattr(diffusers, name)(**parts)
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(0)
    noise, *draws = rng.standard_normal((8, 2, *task.shape)).astype(np.float32)
    text = task.cond.parts[0]
    tokens = rng.integers(1, 500, (2, getattr(text, "length", text.context))).astype(np.int32)
    recipe, raw = Recipe.of(ours["sample"]), {"tokens": jnp.asarray(tokens)}
    static, strengths = recipe.split()
    cond = embedded(Model(params, None, task), static, strengths, raw, jax.random.key(0), jax.random.normal).cond
    given = {"seq": cond["seq"]}
    if "XL" in name:
        given["pooled"] = np.array(text.apply({"params": params["cond"]["parts_0"]}, tokens, method=type(text).texts)[1])
    want = latents_of(pipe, given, noise, draws)
    left = iter(draws)
    sampler = recipe.make_sampler(task, lambda *_: jnp.asarray(next(left)))
    times = recipe.grid(task.process)
    x = start(task.process, times, jax.random.key(0), noise.shape, lambda *_: jnp.asarray(noise))
    denoise = recipe.make_guidance(task, Strengths(), None, None)(jax.jit(task.denoiser(params)))
    state = sampler.init(x, len(times) - 1)
    for t, s in pairs_of(times):
        x, state = sampler.step(lambda x, t, key: denoise(x, t, cond, key), x, state, t, s, jax.random.key(0))
    off = np.abs(np.asarray(x) - want).max() / want.std()
    print(name, "off", off, "std", want.std())
    assert off < 1e-3

