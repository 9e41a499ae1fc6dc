"""What docs/fine_tuning.md says: a LoRA beside a run's weights, own classes, another size of picture."""
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from own_pictures import classes
from pages import ask, files, page, refused

from diffusion_jax.build import ConfigError
from diffusion_jax.data.pictures import read_batch
from diffusion_jax.pretrained.reader import read
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.runs.folder import open_run, save_start
from diffusion_jax.train.checkpoint import weights
from diffusion_jax.train.state import plain, task_of


def lora_page(base, **changes):
    """Two steps on a tiny run, sampled once."""
    config = page("digits", init=str(base), lora=dict(rank=2, alpha=8.0, layers="qkv|mlp"), steps=2, **changes)
    config.evaluate.num = 0
    config.sample.update(num=4, every=2)
    config.optim.update(lr=0.1, warmup=0)                              # far enough in two steps to change pictures
    config.ema.ema.decay = 0.5
    return config


def drawn(folder):
    """Makes the folder of a run whose weights are drawn: none is zero, as most are that were trained for four steps."""
    config = plain(page("digits"))
    task = task_of(config)
    shapes = shapes_of(task.init, jax.random.key(0), {"image": np.zeros((1, 8, 8, 1)), "label": np.zeros(1, np.int32)})
    rng = np.random.default_rng(0)
    save_start(folder, config, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32), shapes))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("base") / "run")


@pytest.fixture(scope="module")
def lora_run(base, tmp_path_factory):
    """The folder of a LoRA that was trained on it, by way of a copy that is gone since."""
    root = tmp_path_factory.mktemp("lora")
    shutil.copytree(base, root / "base")
    ask("train", root / "run", config=lora_page(root / "base"))
    shutil.rmtree(root / "base")
    return root / "run"


@pytest.mark.slow
def test_a_lora_is_trained_and_sampled_from_its_folder_or_its_file(cli, base, lora_run, tmp_path):
    before, after = (flatten_dict(open_run(folder).model.params, sep="/") for folder in (base, lora_run))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {f"model/blocks/{name}/kernel" for name in ("attn/qkv", "mlp/fc1", "mlp/fc2")}
    factors = weights(lora_run).params["model"]["blocks"]
    assert factors["mlp"]["fc2"]["kernel"]["down"].shape == (1, 128, 2) and set(factors) == {"attn", "mlp"}
    file = lora_run / "lora.safetensors"
    assert read(file)["model/blocks/attn/qkv/kernel.alpha"] == 8 and file.stat().st_size < 2**21
    # What was shown while it trained, what its folder samples, and what its file does to the base are the same pictures.
    shown, _ = read_batch(lora_run / "samples" / "00000002.png")
    sampled = []
    for folder, flags in ((lora_run, ()), (base, ("--lora", f"{file}=1.0")), (base, ())):
        done = cli("--mode", "sample", "--workdir", folder, "--num", 4, "--out", tmp_path / "x.png", *flags)
        assert done.code == 0, done.err
        sampled.append(read_batch(tmp_path / "x.png")[0])
    np.testing.assert_array_equal(sampled[0], shown)
    np.testing.assert_array_equal(sampled[0], sampled[1])
    assert (sampled[0] != sampled[2]).any()


@pytest.mark.parametrize("arguments, says", [
    (("sample", "--lora", "x.safetensors=strong"), "the strength of --lora x.safetensors=strong is a number"),
    (("edit", "--op", "guidance", "--values", "1,2", "--lora", "x.safetensors"), "there is no file x.safetensors"),
    (("sweep", "--over", "guidance", "--values", "1,2", "--lora", "x.safetensors"), "there is no file x.safetensors"),
    (("evaluate", "--lora", "x.safetensors"), "there is no file x.safetensors"),
    (("evaluate", "--images", "x.npz", "--lora", "x.safetensors"), "are of a run's weights, and so is --lora"),
    (("likelihood", "--lora", "x.safetensors=strong"), "the strength of --lora x.safetensors=strong is a number"),
    (("likelihood", "--lora", "x.safetensors"), "holds a diffusion model: give the folder of a transformer"),
    (("encode", "--out", "x", "--lora", "x.safetensors"), "holds a diffusion model: give the folder of an autoencoder"),
    (("plan", "--config", "digits", "--lora", "x.safetensors"), "--lora belongs to modes edit, encode, evaluate"),
])
def test_loras_of_files_go_with_what_reads_a_runs_weights(cli, base, monkeypatch, tmp_path, arguments, says):
    monkeypatch.chdir(tmp_path)
    before = files(base)
    assert refused(cli("--workdir", base, "--mode", *arguments), says)
    assert files(base) == before


@pytest.mark.parametrize("changes, says", [
    (dict(lora=dict(rank=0)), "config.lora.rank is 1"), (dict(lora=dict(rnk=2)), "did you mean 'lora.rank'"),
    (dict(lora=dict(layers="(")), "config.lora.layers is a regular expression"), (dict(lora=4), "config.lora is a section"),
    (dict(lora=dict(layers="nothing")), "no kernel's path matches lora.layers 'nothing'; this network has 10"),
    (dict(init=""), "config.init is its folder, got ''"), (dict(lora=dict(alpha="much")), "config.lora.alpha is a number"),
])
def test_what_a_page_cannot_ask_of_a_lora(base, tmp_path, changes, says):
    config = lora_page(base).to_dict() | changes
    with pytest.raises(ConfigError, match=says):
        ask("train", tmp_path / "run", config=config)
    assert not list((tmp_path / "run").glob("[a-z]*"))


@pytest.mark.slow
def test_a_lora_resumes_bit_for_bit_without_the_folder_that_it_began_from(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    config = lora_page(tmp_path / "base", validate=dict(every=2, num=16))
    config.checkpoint.update(every=1)
    ask("train", tmp_path / "whole", config=config.to_dict() | {"steps": 4})
    ask("train", tmp_path / "parts", config=config)
    shutil.rmtree(tmp_path / "base")
    ask("train", tmp_path / "parts", config=config.to_dict() | {"steps": 4})
    one, other = (weights(tmp_path / name).params for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_a_base_that_is_split_over_devices_gives_the_same_lora(base, tmp_path):
    config = lora_page(base)
    ask("train", tmp_path / "whole", config=config)
    split = lora_page(base, mesh=dict(data=2, fsdp=2, tensor=2), sharding=(("qkv/kernel$", (None, "tensor")), (".*", "fsdp")))
    ask("train", tmp_path / "split", config=split)
    one, other = (weights(tmp_path / name).params for name in ("whole", "split"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), one, other)


# Recipes: each begins from a base whose rate of learning is zero, so that what was taken over is there afterwards ---------------


def tuned(folder, name="digits", **changes):
    """A step of nothing: the parameters that it ends with."""
    config = page(name, steps=1, **changes)
    config.optim.lr = 0.0
    config.evaluate.num = 0
    config.sample.update(num=2, every=1)
    ask("train", folder, config=config)
    return open_run(folder).model.params


def same(got, want):
    """Equal but for the rounding of an average of equal weights."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), got, want)


@pytest.mark.slow
def test_own_classes_on_anothers_network(base, tmp_path):
    config = page("digits", init=str(base))
    config.task.cond.num_classes = 12
    with pytest.raises(ConfigError, match=r"cond/table is \(11, 32\), the config's is \(13, 32\); start from what fits alone "
                                          r"\(--config.init.model=FOLDER:model\)"):
        ask("train", tmp_path / "refused", config=config)
    changes = dict(init={"model": f"{base}:model"}, task=config.task)
    got, before = tuned(tmp_path / "run", **changes), open_run(base).model.params
    same(got["model"], before["model"])
    assert got["cond"]["table"].shape == (13, 32)


@pytest.mark.slow
def test_a_unet_at_another_size_needs_no_more(tmp_path):
    config = page("digits_adm")
    config.evaluate.num = 0
    ask("train", tmp_path / "base", config=config)
    config.task.shape = (16, 16, 1)
    config.data.decode.size = 16
    changes = dict(init=str(tmp_path / "base"), task=config.task, data=config.data)
    got = tuned(tmp_path / "run", "digits_adm", **changes)
    same(got, open_run(tmp_path / "base").model.params)


@pytest.mark.slow
def test_the_page_of_a_lora_is_that_of_its_base_on_pictures_of_ones_own(cli, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classes(tmp_path / "photos", shape=(9, 9, 1))
    shorter = [f"--config.{key}={value}" for key, value in {
        "steps": 2, "batch": 8, "optim.steps": 100, "sample.num": 4, "sample.every": 2, "checkpoint.every": 2}.items()]
    done = cli("--config", f"lora:{base}", "--config.pictures=photos/", "--workdir", "run", *shorter)
    assert done.code == 0, done.err
    run = open_run("run")
    assert run.config["model"] == open_run(base).config["model"] and run.config["data"]["train"]["path"] == "photos/"
    done = cli("--mode", "sample", "--workdir", base, "--lora", "run=0.5", "--num", 2, "--out", "x.png")
    assert done.code == 0, done.err
    assert refused(cli("--config", "lora:nowhere", "--workdir", "other"), "there is no folder")
