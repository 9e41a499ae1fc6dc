"""DiT, written for the official code and for diffusers: what was scanned is unrolled, and equal where diffusers is installed."""
import jax.numpy as jnp
import numpy as np
import pytest
from exports import channels_first, channels_last, drawn, golden, refused, there_and_back
from pages import page as config

from diffusion_jax.models.dit import stack_layers
from diffusion_jax.pretrained import export, package
from diffusion_jax.pretrained.vae_export import HF_WEIGHTS
from diffusion_jax.train.state import task_of

NAMES = tuple(f"digit {i}" for i in range(10))


def latent():
    """A DiT of four channels of latents, and their autoencoder."""
    model = dict(name="diffusion_jax.models.dit:DiT", patch=2, width=32, depth=2, heads=4, scan=True, remat="full")
    kl = dict(name="diffusion_jax.models.vae:KL", channels=3, latent=4, width=32, mults=(1, 2), depth=1)
    task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion", shape=(8, 8, 4), variance="learned_range", objective="hybrid",
        cond=dict(name="diffusion_jax.models.cond:Label", num_classes=10, width=32), drop=dict(label=0.1),
        process=dict(name="diffusion_jax.diffusion.process:DDPM"), scale=dict(name="diffusion_jax.diffusion.scales:Eps"),
        first_stage=dict(name="diffusion_jax.tasks.autoencoder:Autoencoder", model=kl, shape=(16, 16, 3), scale=0.18215),
    )
    return dict(model=model, task=task, sample=dict(sampler="ancestral", steps=250, times="respace", guidance=4.0, channels=3))


@pytest.fixture(scope="module")
def digits():
    """(The page digits:tiny as a checkpoint has it, random parameters)."""
    page = config("digits").to_dict()
    return page, drawn(task_of(page), label=np.zeros(1, np.int32))


@pytest.mark.parametrize("system, case, options", [
    ("dit", "dit/dit_psample_8_fixedlarge_clip", "model"), ("diffit", "diffit/sample_ddpm10", None),
])
def test_there_and_back(tmp_path, system, case, options):
    page, params, weights = golden(tmp_path, system, case, options)
    written, back = there_and_back(tmp_path / "out", page, params)
    found = written.files["model.safetensors"]
    assert found.keys() == weights.keys() and written.notes == () and back["task"] == page["task"]
    for key, value in weights.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-6 * (key == "pos_embed"), err_msg=key)


def test_the_quick_starts_run_is_written(digits, tmp_path):
    page, params = digits
    written, back = there_and_back(tmp_path / "out", page | {"model": page["model"] | {"remat": None}}, params)
    assert "blocks.0.attn.qkv.weight" in written.files["model.safetensors"] and "predicts V" in written.notes[0]
    assert back["model"]["channels"] == 1 and back["task"]["cond"]["num_classes"] == 10
    unrolled = page | {"model": page["model"] | {"scan": False}}
    flat = {"cond": params["cond"], "model": {key: value for key, value in params["model"].items() if key != "blocks"}}
    flat["model"]["blocks_0"] = {part: {name: {key: w[0] for key, w in layer.items()} for name, layer in block.items()}
                                 for part, block in params["model"]["blocks"].items()}
    assert stack_layers(flat["model"]).keys() == params["model"].keys()
    for key, value in export.package(unrolled, flat, "original").files["model.safetensors"].items():
        np.testing.assert_array_equal(value, written.files["model.safetensors"][key], err_msg=key)


def test_without_an_autoencoder_there_is_no_pipeline(digits):
    written = export.package(*digits, "diffusers", NAMES)
    assert set(written.files) == {"transformer/config.json", f"transformer/{HF_WEIGHTS}", "scheduler/scheduler_config.json"}
    assert written.files["scheduler/scheduler_config.json"]["prediction_type"] == "v_prediction"
    weights = written.files[f"transformer/{HF_WEIGHTS}"]
    table = weights["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"]
    ours = np.asarray(digits[1]["cond"]["table"])
    np.testing.assert_array_equal(table[:11], ours)
    np.testing.assert_array_equal(table[1000], ours[10])                      # where the pipeline looks for "no label"
    assert len(table) == 1001 and "downscale_freq_shift = 0" in written.code and "frequencies" in written.notes[0]


def test_latents_and_names_make_a_pipeline():
    page = latent()
    params = drawn(task_of(page), label=np.zeros(1, np.int32))
    written = export.package(page, params, "diffusers", NAMES)
    index = written.files["model_index.json"]
    assert index["_class_name"] == "DiTPipeline" and index["id2label"]["3"] == "digit 3"
    assert written.files["vae/config.json"]["scaling_factor"] == 0.18215
    original = export.package(page, params, "original")
    assert "first_stage too" in original.notes[-1] and set(original.files) == {"model.safetensors", "config.json"}


@pytest.mark.parametrize("part, changes, to, says", [
    ("model", dict(block="adaln"), "original", "the official DiT has no block 'adaln', only 'adaln_zero'"),
    ("model", dict(grid=2), "original", r"positions that count patches \(grid is 4\)"),
    ("model", dict(mlp_ratio=2.0), "diffusers", "DiTTransformer2DModel has no mlp_ratio 2.0"),
    ("task", dict(cond=dict(name="diffusion_jax.models.cond:Nothing")), "original", "sees labels and nothing else"),
    ("task", dict(cond=dict(name="diffusion_jax.models.cond:Label", num_classes=10, width=32, null_row=False), drop={}),
     "diffusers", "has a row for 'no label'"),
    ("task", dict(process=dict(name="diffusion_jax.diffusion.process:Cosine")), "diffusers", "process Cosine.*--to original"),
])
def test_what_they_lack_is_named(digits, part, changes, to, says):
    page, params = digits
    refused(page | {part: page[part] | changes}, params, to, says)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["latent", "digits"])
def test_diffusers_sees_the_same(name, digits, tmp_path):
    torch, _ = (pytest.importorskip(module) for module in ("torch", "diffusers"))
    page, params = digits if name == "digits" else (latent(), drawn(task_of(latent()), label=np.zeros(1, np.int32)))
    written = export.package(page, params, "diffusers", NAMES)
    package.write(tmp_path / "out", written.files)
    names: dict = {}
    code = written.code.replace("FOLDER", str(tmp_path / "out")).replace("GUIDANCE", "4.0").replace("STEPS", "2")
    exec(code.replace("sample.png", str(tmp_path / "sample.png")), names)
    network = names["pipe"].transformer if name == "latent" else names["model"]
    task, rng = task_of(page), np.random.default_rng(0)
    x, times, labels = rng.standard_normal((2, *task.shape)).astype(np.float32), np.array([3, 777]), np.array([4, 10])
    cond = task.embed(params, {"label": jnp.asarray(labels)})
    ours = task.model.apply({"params": params["model"]}, x, jnp.asarray(times), cond)
    with torch.no_grad():
        theirs = network(channels_first(x), timestep=torch.tensor(times), class_labels=torch.tensor([4, 1000])).sample
    np.testing.assert_allclose(channels_last(theirs), ours, atol=1e-5, rtol=0)
    assert (tmp_path / "sample.png").is_file() == (name == "latent")
