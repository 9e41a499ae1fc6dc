"""Latent diffusion as CompVis's one file and as diffusers' folder: back again, and equal where diffusers is installed."""
import jax.numpy as jnp
import numpy as np
import pytest
from exports import channels_first, channels_last, drawn, refused, same, there_and_back

from diffusion_jax.build import build
from diffusion_jax.pretrained import export, package, sd_export, systems
from diffusion_jax.pretrained.vae_export import HF_WEIGHTS
from diffusion_jax.train.state import task_of

COND, TOWER = "diffusion_jax.models.text_cond", "diffusion_jax.models.clip:TextTower"
CONTEXT = 16
SMALL = dict(name=TOWER, features=None, vocab=514, context=CONTEXT, width=24, layers=2, heads=12, hidden=96)
CLIP = SMALL | dict(vocab=49408, width=12, hidden=48)
OPEN = SMALL | dict(vocab=49408, width=64, heads=1, act="gelu", skip=1, features=8, hidden=256)
EMPTY = (49406, 49407, 49407)
TEXT = dict(name=f"{COND}:TowerText", tower=SMALL, empty=(512, 513, 513), context=CONTEXT)
STACK = dict(name=f"{COND}:Stack", key="inpaint", channels=5)
BERT = dict(name="diffusion_jax.models.bert:TextEncoder", vocab=60, context=CONTEXT, width=32, layers=2)


def page(cond=TEXT, model=None, first=None, **task):
    """A small latent diffusion model's."""
    network = dict(
        name="diffusion_jax.models.unet:UNet", width=32, mults=(1, 2), depth=1, attend=(1,), heads=4, scale_shift=False,
        resample="conv", transformer=1, channels=4, learn_sigma=False,
    )
    kl = dict(name="diffusion_jax.models.vae:KL", channels=3, latent=4, width=32, mults=(1, 2), depth=1) | (first or {})
    process = dict(name="diffusion_jax.diffusion.process:DDPM", schedule="scaled_linear", steps=1000, start=0.00085, end=0.012)
    stage = dict(name="diffusion_jax.tasks.autoencoder:Autoencoder", model=kl, shape=(16, 16, 3), scale=0.25)
    whole = dict(name="diffusion_jax.tasks.diffusion:Diffusion", cond=cond, process=process, shape=(8, 8, 4), first_stage=stage,
                 scale=dict(name="diffusion_jax.diffusion.scales:Eps")) | task
    tokenizer = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", merges="", context=CONTEXT, pad_end=True)
    return dict(
        model=network | (model or {}), task=whole,
        data=dict(decode=dict(name="diffusion_jax.data.image:Decode", size=16, tokenizer=tokenizer)),
        sample=dict(sampler="ddim", steps=50, times="leading,offset=1,last=0", guidance=7.5),
    )


def random(ours):
    """Random parameters of a page."""
    zeros = dict(tokens=np.zeros((1, CONTEXT), np.int32), label=np.zeros(1, np.int32), inpaint=np.zeros((1, 8, 8, 5), np.float32))
    return drawn(task_of(ours), **zeros)


V = dict(scale=dict(name="diffusion_jax.diffusion.scales:V"))
FILES = {
    "Stable Diffusion 1": page(TEXT | {"tower": CLIP, "empty": EMPTY}),
    "Stable Diffusion 2": page(TEXT | {"tower": OPEN, "empty": (49406, 49407, 0)}, dict(heads=1, head_channels=16), **V),
    "inpainting": page(dict(name="diffusion_jax.models.cond:Joint", parts=[TEXT | {"tower": CLIP, "empty": EMPTY}, STACK])),
    "classes as tokens, VQ": page(dict(name=f"{COND}:LabelToken", num_classes=5, width=16),
                                  first=dict(name="diffusion_jax.models.vae:VQ", codes=16, attend=(2,))),
    "BERT": page(dict(name=f"{COND}:TowerText", tower=BERT, empty=(101, 102, 0), context=CONTEXT)),
    "classes": page(dict(name="diffusion_jax.models.cond:Label", num_classes=7, width=128, null_row=False),
                    dict(transformer=0, resample="res", scale_shift=True)),
    "nothing": page(dict(name="diffusion_jax.models.cond:Nothing"), dict(transformer=0)),
}
QUICK = ("inpainting",)


def without_hidden(spec):
    """A conditioner's spec, built but for what two layouts spell otherwise: a width of four times another."""
    if not isinstance(spec, dict):
        return [without_hidden(part) for part in spec] if isinstance(spec, (list, tuple)) else spec
    return {key: without_hidden(value) for key, value in spec.items() if key not in ("hidden", "act", "eps", "end", "frozen")}


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FILES])
def test_one_file_there_and_back(name, tmp_path):
    ours = FILES[name]
    params = random(ours)
    written, back = there_and_back(tmp_path / "out", ours, params)
    assert without_hidden(back["task"]["cond"]) == without_hidden(ours["task"]["cond"])
    assert back["task"]["process"] == ours["task"]["process"] and back["task"]["scale"] == ours["task"]["scale"]
    assert back["task"]["first_stage"]["scale"] == 0.25
    wanted = dict.fromkeys([*written.files["model.safetensors"]][:3], (1,))
    assert sd_export.export(ours, params, wanted).keys() == wanted.keys()
    refused(ours | {"task": ours["task"] | {"process": dict(ours["task"]["process"], schedule="linear")}}, params, "original",
            "linear in their roots.*not DDPM linear")


@pytest.fixture(scope="module")
def own():
    """(A page with a vocabulary of its own, its parameters)."""
    return page(), random(page())


def test_a_folder_there_and_back(own, tmp_path):
    ours, params = own
    written = export.package(ours, params, "diffusers")
    package.write(tmp_path / "out", written.files)
    assert written.notes == () and written.files["model_index.json"]["tokenizer"] == ["transformers", "CLIPTokenizer"]
    back, again = systems.load("sd", tmp_path / "out")
    same(params, again)
    assert build(back["model"]) == build(ours["model"]) and build(back["task"]["cond"]) == build(ours["task"]["cond"])
    assert back["sample"] == ours["sample"] and back["task"]["process"].items() >= ours["task"]["process"].items()
    assert build(back["data"]["decode"]["tokenizer"]) == build(ours["data"]["decode"]["tokenizer"])


@pytest.mark.parametrize("changes, to, says", [
    (dict(cond=FILES["BERT"]["task"]["cond"]), "diffusers", "reads a text with CLIP's tower.*--to original"),
    (dict(cond=FILES["nothing"]["task"]["cond"]), "diffusers", "--to original writes a Nothing"),
    ({}, "original", "has no vocab 514, only 49408"),
    (dict(model=dict(learn_sigma=True)), "diffusers", "has no learn_sigma True"),
    (dict(model=dict(scale_shift=True)), "diffusers", "has no scale_shift True"),
    (dict(model=dict(mults=(0.5, 1))), "diffusers", r"model.mults begins with 1.*mults are \(0.5, 1\)"),
    (dict(model=dict(groups=16)), "original", "has no groups 16"),
    (dict(first=dict(attend=(2,))), "diffusers", "AutoencoderKL has no attend"),
    (dict(first_stage=None), "original", r"makes latents \(task.first_stage\)"),
])
def test_what_they_lack_is_named(own, changes, to, says):
    refused(page(**changes), own[1], to, says)


PIPELINES = {
    "own words": page(),
    "Stable Diffusion 2": page(TEXT | {"tower": OPEN | {"vocab": 514}}, dict(heads=1, head_channels=16), **V),
    "inpainting": page(dict(name="diffusion_jax.models.cond:Joint", parts=[TEXT, STACK])),
    "levels": page(TEXT, dict(mults=(1, 2, 3), attend=(1, 2), groups=16, depth=2, transformer=2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_diffusers_sees_the_same(name, tmp_path):
    """Text, latents and pictures; and the tokenizer reads as ours does."""
    torch, _, _ = (pytest.importorskip(module) for module in ("torch", "diffusers", "transformers"))
    ours = PIPELINES[name]
    params, task, rng = random(ours), task_of(ours), np.random.default_rng(0)
    written = export.package(ours, params, "diffusers")
    package.write(tmp_path / "out", written.files)
    names: dict = {}
    code = written.code.replace("FOLDER", str(tmp_path / "out")).replace("GUIDANCE", "2.0").replace("STEPS", "2")
    exec(code.replace("PROMPT", "a cat").replace("sample.png", str(tmp_path / "sample.png")), names)
    pipe = names["pipe"]
    tokens = np.full((2, CONTEXT), 513)
    tokens[:, 0], tokens[:, 1:5] = 512, rng.integers(0, 500, (2, 4))
    x, times = rng.standard_normal((2, 8, 8, 4)).astype(np.float32), np.array([3, 777])
    behind = rng.standard_normal((2, 8, 8, 5)).astype(np.float32)
    raw = {"tokens": jnp.asarray(tokens, jnp.int32), "inpaint": jnp.asarray(behind)}
    cond = task.embed(params, raw)
    seen = np.concatenate([x, behind], axis=-1) if name == "inpainting" else x
    stage = task.first_stage.model
    weights = {"params": params["first_stage"]["model"]}
    with torch.no_grad():
        text = pipe.text_encoder(torch.tensor(tokens))[0]
        latents = pipe.unet(channels_first(seen), torch.tensor(times), encoder_hidden_states=text).sample
        picture = pipe.vae.decode(channels_first(x)).sample
    np.testing.assert_allclose(text.numpy(), cond["seq"], atol=1e-5, rtol=0)
    mine = task.model.apply({"params": params["model"]}, x, jnp.asarray(times), cond)
    np.testing.assert_allclose(channels_last(latents), mine, atol=1e-5, rtol=0)
    np.testing.assert_allclose(channels_last(picture), stage.apply(weights, x, method="decode"), atol=1e-5, rtol=0)
    words = pipe.tokenizer(["Hello there, you"], padding="max_length", max_length=CONTEXT, truncation=True).input_ids[0]
    assert words == build(ours["data"]["decode"]["tokenizer"])("Hello there, you").tolist()
    assert (tmp_path / "sample.png").is_file() == (name != "inpainting")
    assert written.files[f"unet/{HF_WEIGHTS}"]
