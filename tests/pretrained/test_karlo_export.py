"""unCLIPs, written: Karlo's files and diffusers' folders come back bit for bit."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exports import GOLDENS, refused, same
from golden_case import load as golden
from stubs import random_params

from diffusion_jax.build import ConfigError, build
from diffusion_jax.pretrained import export, karlo, karlo_export, karlo_hf_export, package, systems, unclip
from diffusion_jax.train.state import task_of

CONTEXT, F, SIDE = 16, 24, 16
NET, TASK, SCALES = "diffusion_jax.models.", "diffusion_jax.tasks.", "diffusion_jax.diffusion.scales:"
CLIP = dict(
    name=f"{NET}clip:CLIP",
    image=dict(name=f"{NET}clip:ViT", features=F, size=SIDE, patch=4, width=32, layers=1, heads=1),
    text=dict(name=f"{NET}clip:TextTower", features=F, vocab=514, context=CONTEXT, width=F, layers=2, heads=3),
)
FIRST = dict(name=f"{TASK}embedder:Embedder", empty=(512, 513, 513), unit=True,
             clip=dict(name=f"{TASK}clip:Contrastive", model=CLIP, shape=(SIDE, SIDE, 3)))
UNET = dict(name=f"{NET}unet:UNet", width=32, mults=(1, 2), depth=1, attend=(2,), heads=2)
LARGE = UNET | dict(attend=(), heads=1, mid_attention=False, scale_shift=False, learn_sigma=False)
COSINE = dict(name="diffusion_jax.diffusion.process:DDPM", schedule="squaredcos")
PLAIN = karlo._way("Eps", "fixed_small", 1.0, False)


def decoder(model=None, first=None, **task):
    """A decoder's page, like one that was trained here."""
    cond = dict(name=f"{NET}unclip:ImageText", features=F, out=128, width=20)
    whole = dict(name=f"{TASK}diffusion:Diffusion", cond=cond, shape=(SIDE, SIDE, 3), first_stage=FIRST | (first or {}),
                 scale=dict(name=f"{SCALES}Eps"), variance="learned_range", objective="hybrid", process=COSINE)
    tokenizer = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", merges="", context=CONTEXT, pad_end=True)
    return dict(model=UNET | (model or {}), task=whole | task,
                data=dict(decode=dict(name="diffusion_jax.data.image:Decode", size=SIDE, tokenizer=tokenizer)),
                sample=dict(sampler="ancestral", times="linspace", steps=25, clip=1.0, guidance=8.0))


def prior(**model):
    """A diffusion prior's."""
    page = decoder(scale=dict(name=f"{SCALES}X0"), variance="fixed_small", objective="mse", shape=(F,))
    page["model"] = dict(name=f"{NET}prior:Prior", features=F, context=CONTEXT, width=48, layers=2, heads=4) | model
    page["task"] |= dict(name=f"{TASK}prior:DiffusionPrior", cond=dict(name=f"{NET}unclip:Text", features=F))
    page["sample"] |= dict(clip=5.0, guidance=4.0)
    return page


def upsampler(cond=None, **last):
    """An upsampler's."""
    page = decoder(shape=(2 * SIDE, 2 * SIDE, 3), variance="fixed_small", objective="mse")
    page["task"]["cond"] = dict(name=f"{NET}cond:LowRes", factor=2, enlarge="bicubic") | (cond or {})
    page["task"].pop("first_stage")
    page["model"] = dict(name=f"{NET}unclip:Relay", first=LARGE, last=LARGE | last)
    page["data"]["decode"] = dict(name="diffusion_jax.data.image:Decode", size=2 * SIDE)
    return page


PAGES = {"prior": prior(), "decoder": decoder(), "upsampler": upsampler()}
EMPTY = {"clip": {"model": {"text": {}}}, "basis": np.eye(F), "mean": np.zeros(F), "std": np.ones(F)}
STATES = {"text_seq": {"kernel": np.zeros((F, 20))}}
BARE = {"prior": {"model": STATES, "first_stage": EMPTY}, "decoder": {"model": {}, "cond": STATES, "first_stage": EMPTY},
        "upsampler": {"model": {"first": {}, "last": {}}}}
"""Parameters that are looked at before anything is written."""


def random(page, seed):
    """Random parameters of a page, and of its CLIP, which is one for all of them and has no components."""
    task = task_of(page)
    first = getattr(task, "first_stage", None)
    blank = {"image": np.zeros((1, *(task.shape if first is None else first.shape)), np.float32),
             "tokens": np.zeros((1, CONTEXT), np.int32)}
    params = random_params(task, blank, seed, 0.2)
    if first is None:
        return params
    clip = random_params(first, blank, 1, 0.2)
    plain = {"basis": jnp.eye(F), "low": jnp.zeros(F), "high": jnp.ones(F), "dots": jnp.zeros_like(clip["dots"])}
    return params | {"first_stage": clip | plain}


def drawn():
    """Name -> random parameters of each page."""
    return {name: random(page, seed) for seed, (name, page) in enumerate(PAGES.items())}


@pytest.fixture(scope="module")
def parts():
    return drawn()


def joined(parts, pages=PAGES):
    """(The page of the decoder with those of the others, the parameters), as import returns them."""
    others = {name: {key: part for key, part in parts[name].items() if key != "first_stage"} for name in ("prior", "upsampler")}
    return pages["decoder"] | {"parts": {name: pages[name] for name in others}}, parts["decoder"] | {"parts": others}


def pairs(page, other):
    """Pages and those that came back, part by part."""
    return [(page, other), *((section, other["parts"][name]) for name, section in page["parts"].items())]


def back(folder, written):
    """What import makes of a package, by the options of the command that it gives."""
    package.write(folder, written.files)
    options = folder / "config.json"
    return systems.load("karlo", folder, options if options.is_file() else None)


def without_temperature(params):
    """Parameters without a CLIP's own, which no text or image encoder of transformers has."""
    clip = {name: part for name, part in params["first_stage"]["clip"]["model"].items() if name != "logit_scale"}
    return {"cond": {}} | params | {"first_stage": params["first_stage"] | {"clip": clip}}


# What is published ----------------------------------------------------------------------------------------------------------


def test_karlos_own_files_come_back_bit_for_bit(tmp_path):
    names = {"prior": "unclip/karlo_prior", "decoder": "unclip/karlo_decoder", "improved-sr": "unclip/karlo_sr",
             "clip": "clip/clip_vit"}
    cases = {stem: golden(GOLDENS / f"{name}.json") for stem, name in names.items()}
    for stem, case in cases.items():
        package.save_weights(tmp_path / f"{stem}.safetensors", case.weights)
    mean, std = np.random.default_rng(0).normal(size=(2, F)).astype(np.float32)
    package.save_weights(tmp_path / "clip_stats.safetensors", {"mean": mean, "std": std})
    hparams = dict(zip(("prior", "decoder", "sr"), (case.config.get("config", {}).get("model", {}).get("hparams")
                                                    for case in cases.values()), strict=False))
    (tmp_path / "o.json").write_text(json.dumps({**hparams, "clip": cases["clip"].config["kwargs"], "size": 32}))
    page, params = systems.load("karlo", tmp_path, tmp_path / "o.json")
    written = export.package(page, params, "original")
    for stem, case in cases.items():
        found = written.files[f"{stem}.safetensors"]
        assert found.keys() == case.weights.keys()
        for key, value in case.weights.items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)
    unsaid = {"text_drop", "clip_emb_drop", "text_ctx", "num_heads"}             # of training; heads of a size have no number
    for name, want in hparams.items():
        config = written.files["config.json"][name]
        assert set(want) <= set(config) and {key: want[key] for key in set(want) - unsaid}.items() <= config.items()
    assert len(written.notes) == 1 and "heads of 64 channels" in written.notes[0] and "PriorDiffusionModel" in written.code
    again, params_again = back(tmp_path / "out", written)
    same(params, params_again)
    for ours, theirs in pairs(page, again):
        assert build(ours["model"]) == build(theirs["model"]) and ours["sample"] == theirs["sample"]
        assert build(ours["task"].get("first_stage")) == build(theirs["task"].get("first_stage"))


def part_of(case):
    """(A golden network's weights, what import makes of them)."""
    weights = {key.partition("/")[2] or key: w for key, w in case.weights.items()}
    options = case.config["config"]["model"]["hparams"] if "config" in case.config else case.config
    if "xf_layers" in options or "kwargs" in options:
        return weights, karlo._prior(unclip.prior_config(options.get("kwargs", options)), weights, PLAIN)
    if "depth" in options:
        nets = [karlo.part(weights, prefix) for prefix in karlo.SUPER_PREFIXES]
        return weights, karlo._upsampler([unclip.unet_config(options)] * 2, nets, (8, 16), PLAIN)
    unet, text = (options.get(name, options) for name in ("decoder", "text_proj"))
    return weights, karlo._decoder(unclip.unet_config(unet), unclip.cond_config(text), weights, 16, PLAIN)


@pytest.mark.parametrize("name", ["karlo_prior", "karlo_sr", "diffusers_prior", "diffusers_decoder"])
def test_a_network_under_the_keys_of_its_file(name):
    weights, part = part_of(golden(GOLDENS / "unclip" / f"{name}.json"))
    page = {"model": part.model, "task": {"cond": part.cond, "first_stage": FIRST}}
    first = {"mean": weights["clip_mean"][0], "std": weights["clip_std"][0]} if "clip_mean" in weights else {}
    params = part.params | ({"first_stage": first} if first else {})
    found = systems.export("karlo", page, params, {key: w.shape for key, w in weights.items()})
    for key, value in weights.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
    with pytest.raises(ConfigError, match="has no 'model.other'"):
        systems.export("karlo", page, params, {"model.other": (1,)})


# What is refused, and what is said ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, page, to, says", [
    ("decoder", decoder(dict(groups=8)), "original", "Karlo's own code has no groups 8, only 32"),
    ("decoder", decoder(dict(mults=(1, 1.5))), "original", r"whole multiples of its width \(model.mults\), not \(1, 1.5\)"),
    ("decoder", decoder(shape=(32, 32, 3)), "original", "halves images down to 8 pixels .*not to 16"),
    ("decoder", decoder(dict(attend=())), "original", "attends on a level"),
    ("decoder", decoder(dict(resample="conv")), "diffusers", "UNet2DConditionModel has no resample 'conv'"),
    ("decoder", decoder(dict(attend=(1, 2))), "diffusers", r"heads of one size on all levels .*not of \[16, 32\]"),
    ("decoder", decoder(dict(width=64, mults=(0.5, 1))), "diffusers", r"channels of the first level .*mults are \(0.5, 1\)"),
    ("decoder", decoder(scale=dict(name=f"{SCALES}V")), "diffusers", "eps or x0, not V .task.scale; --to original writes"),
    ("decoder", decoder(process=COSINE | {"schedule": "linear"}), "diffusers", "squared cosine, not DDPM .*linear"),
    ("decoder", decoder(variance="learned"), "diffusers", "learns variances between two bounds"),
    ("prior", prior(norm=False), "diffusers", "PriorTransformer has no norm False"),
    ("upsampler", upsampler(dict(enlarge="")), "original", "has no enlarge '', only 'bicubic'"),
    ("upsampler", upsampler(dropout=0.5), "original", "two networks with the same options"),
])
def test_what_they_lack_is_named(name, page, to, says):
    refused(page, BARE[name], to, says)


@pytest.mark.parametrize("to", export.TARGETS)
def test_what_goes_with_a_network_is_asked_for(to):
    refused(PAGES["prior"], {"model": STATES}, to, "which these left with their decoder .first_stage.: export that run")
    page, params = joined(BARE)
    other = BARE["prior"] | {"first_stage": EMPTY | {"clip": {"model": {"text": {"token": np.ones(1)}}}}}
    mine = params | {"first_stage": EMPTY | {"clip": {"model": {"text": {"token": np.zeros(1)}}}}}
    refused(page, mine | {"parts": params["parts"] | {"prior": other}}, to, "has one CLIP for prior and decoder")
    wide = {"model": {"text_seq": {"kernel": np.zeros((F + 1, 48))}}}
    refused(PAGES["prior"], BARE["prior"] | wide, to, "as many channels as their embedding, 24, these have 25")


@pytest.mark.parametrize("task, sample, says", [
    ({}, {}, ""), (dict(scale=dict(name=f"{SCALES}X0"), variance="fixed_small", process=COSINE | {"steps": 50}), {}, ""),
    (dict(variance="fixed_large"), {}, "fixed_large): UnCLIPScheduler stands in"), ({}, {"sampler": "ddim"}, "ddim, linspace"),
    ({}, {"temperature": 0.5}, "0.5"), ({}, {"clip": 0.0}, ""), ({}, {"clip": 7.5}, ""),
])
def test_a_scheduler_reads_as_it_was_written(tmp_path, task, sample, says):
    page = decoder(**task)
    page["sample"] |= sample
    config, notes = karlo_hf_export.scheduler("decoder", page)
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    way = karlo._scheduler(tmp_path)
    assert says in "".join(notes) and bool(says) == bool(notes)
    assert way["sample"]["clip"] == page["sample"]["clip"] and way["task"]["scale"] == page["task"]["scale"]
    assert build(way["task"]["process"]).steps == build(page["task"]["process"]).steps
    if not notes:
        assert way["task"]["variance"] == page["task"]["variance"]


def test_folders_of_diffusers_say_everything(tmp_path):
    (tmp_path / "prior").mkdir()
    with pytest.raises(ConfigError, match="--official is for Karlo's own files"):
        karlo.load(tmp_path, {"size": 32})


# What was trained here ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("to", export.TARGETS)
def test_a_whole_unclip_there_and_back(parts, tmp_path, to):
    page, params = joined(parts)
    written = export.package(page, params, to)
    again, found = back(tmp_path / "out", written)
    same(without_temperature(params), without_temperature(found))
    for ours, theirs in pairs(page, again):
        assert theirs["task"]["scale"] == ours["task"]["scale"] and theirs["task"]["variance"] == ours["task"]["variance"]
        assert build(theirs["task"]["cond"]) == build(ours["task"]["cond"])
    assert build(again["parts"]["prior"]["model"]) == build(page["parts"]["prior"]["model"])
    assert again["task"]["first_stage"]["unit"] and "--system karlo --source FOLDER --" in written.command
    if to == "diffusers":
        index = [name for name in written.files["model_index.json"] if not name.startswith("_")]
        assert {name.partition("/")[0] for name in written.files} == {*index, "image_encoder", "model_index.json"}
        assert again["sample"] == page["sample"] | {"levels": 0} and again["parts"]["prior"]["sample"]["clip"] == 5.0
        assert written.notes == () and "register_forward_hook" in written.code


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("to", export.TARGETS)
def test_one_network_alone(parts, tmp_path, name, to):
    """It is loaded by its class; here it becomes a run, except where nothing says what it enlarges."""
    written = export.package(PAGES[name], parts[name], to)
    assert "model_index.json" not in written.files
    if (name, to) == ("upsampler", "diffusers"):
        with pytest.raises(ConfigError, match="no decoder, which says what it enlarges: put it beside"):
            back(tmp_path / "out", written)
        assert written.command == ""
        return
    again, found = back(tmp_path / "out", written)
    own = parts[name]
    if (name, to) == ("decoder", "diffusers"):                                  # whose prior has the statistics
        numbers = {key: found["first_stage"][key] for key in ("mean", "std")}
        own = own | {"first_stage": own["first_stage"] | numbers}
    same(*(tree if name == "upsampler" else without_temperature(tree) for tree in ({"cond": {}} | own, found)))
    assert again["task"]["shape"] == PAGES[name]["task"]["shape"] and "parts" not in again


@pytest.mark.slow
def test_an_upsampler_of_one_network_and_an_autoregressive_prior(parts):
    one = PAGES["upsampler"] | {"model": LARGE}
    page, params = joined(parts, PAGES | {"upsampler": one, "prior": prior(name=f"{NET}prior_ar:ARPrior")})
    params["parts"]["upsampler"] = {"model": parts["upsampler"]["model"]["first"], "cond": {}}
    written = export.package(page, params, "diffusers")
    same(*(dict(written.files[f"super_res_{net}/diffusion_pytorch_model.safetensors"]) for net in ("first", "last")))
    assert not any(name.startswith("prior") for name in written.files)
    assert "autoregressive" in written.notes[0] and "no prior: each folder" in written.notes[-1]


@pytest.mark.slow
@pytest.mark.parametrize("to", export.TARGETS)
def test_what_a_clip_loses_is_said(parts, to):
    page = decoder(first=dict(clip=FIRST["clip"] | {"model": CLIP | {"mean": (0.5,) * 3}}))
    params = {**parts["decoder"], "first_stage": {**parts["decoder"]["first_stage"], "basis": np.ones((F, F))}}
    written = export.package(page, params, to)
    for words in ("image tower is left out", "principal components"):
        assert any(words in note for note in written.notes)
    assert not any(name.startswith("image_encoder") for name in written.files)
    assert not any("visual" in key for key in written.files.get("clip.safetensors", {}))


def published(layout, files):
    """Part -> (the state dicts of its published files, what reads them)."""
    if layout == "original":
        options, text, large = karlo.DECODER, karlo.DECODER, karlo.SUPER
        own, split = [files["sr"]], lambda w: [karlo.part(w, prefix) for prefix in karlo.SUPER_PREFIXES]
    else:
        blocks = dict(block_out_channels=[320, 640, 960, 1280], layers_per_block=3)
        options = blocks | dict(down_block_types=["Resnet", *["Attn"] * 3], in_channels=3, out_channels=6, attention_head_dim=64,
                                resnet_time_scale_shift="scale_shift")
        text = dict(clip_embeddings_dim=768, time_embed_dim=1280, cross_attention_dim=1536, clip_extra_context_tokens=4)
        large = blocks | dict(down_block_types=["Resnet"] * 4, in_channels=6, out_channels=3, add_attention=False)
        own, split = [files["super_res_first"], files["super_res_last"]], lambda *w: list(w)
    decoder = unclip.unet_config(options), unclip.cond_config(text)
    return {
        "prior": ([files["prior"]], lambda w: karlo._prior(unclip.prior_published(w), w, PLAIN)),
        "decoder": ([files[name] for name in ("decoder", "text_proj") if name in files],
                    lambda *w: karlo._decoder(*decoder, {key: value for part in w for key, value in part.items()}, 64, PLAIN)),
        "upsampler": (own, lambda *w: karlo._upsampler([unclip.unet_config(large)] * 2, split(*w), (64, 256), PLAIN)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_the_published_files_go_back_by_their_shapes(layout):
    """All of Karlo's 3.5 billion weights, of which nothing but names and shapes is made."""
    files: dict = {}
    for key, shape in golden(GOLDENS / "unclip" / f"keys_karlo_{layout}.json").want.items():
        name, _, rest = key.partition("/")
        if rest not in unclip.STATISTICS:
            files.setdefault(name, {})[rest] = jax.ShapeDtypeStruct(tuple(shape), np.float32)
    for name, (state_dicts, read) in published(layout, files).items():
        def there_and_back(*weights, name=name, read=read):
            part = read(*weights)
            page = {"model": part.model, "task": {"cond": part.cond}}
            return karlo_export.state_dicts(name, karlo_export._part("", name, page, part.params), layout == "diffusers")

        found = jax.eval_shape(there_and_back, *state_dicts)
        for one, theirs in zip(found.values(), state_dicts, strict=True):
            assert {key: w.shape for key, w in one.items()} == {key: w.shape for key, w in theirs.items()}
