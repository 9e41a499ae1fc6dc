"""A frozen first stage becomes part of the run that is trained on it."""
import shutil

import jax
import numpy as np
import pytest
from pages import page as page_of
from pipelines.toy_task import LABEL, TOKENIZER, page
from stubs import random_params

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.image import to_unit
from diffusion_jax.runs import first_stage
from diffusion_jax.runs.folder import FIRST, open_run, save_start
from diffusion_jax.tasks.embedder import Embedder
from diffusion_jax.train.state import plain, task_of


def saved(folder, config, batch):
    """A run's folder with random weights; returns them."""
    params = random_params(task_of(config), batch)
    save_start(folder, config, params)
    return params


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """(the folder, the config, the weights) of an autoencoder that nobody trained."""
    folder, config = tmp_path_factory.mktemp("vae") / "run", plain(page_of("digits_vae"))
    return folder, config, saved(folder, config, {"image": np.zeros((1, 8, 8, 1), np.float32)})


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The same of a CLIP."""
    folder, config = tmp_path_factory.mktemp("clip") / "run", plain(page_of("digits_clip"))
    tokens = np.zeros((1, config["model"]["text"]["context"]), np.int32)
    return folder, config, saved(folder, config, {"image": np.zeros((1, 8, 8, 1), np.float32), "tokens": tokens})


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_without_one_nothing_changes(tmp_path):
    config, params = first_stage.joined(page(LABEL), str(tmp_path))
    assert config == page(LABEL) and params is None and not list(tmp_path.iterdir())


def test_its_task_joins_the_config_and_its_weights_the_folder(vae, tmp_path):
    folder, config, weights = vae
    page_ = {**page(LABEL), FIRST: str(folder)}
    joined, params = first_stage.joined(page_, str(tmp_path / "run"))
    assert same(params, weights)
    inner = joined["task"][FIRST]
    assert inner == config["task"] | {"model": config["model"]} and FIRST not in page_["task"]
    assert build(inner) == task_of(config)
    assert same(open_run(tmp_path / "run" / FIRST).model.params, weights)


def test_the_copy_is_enough_the_second_time(vae, tmp_path):
    moved = shutil.copytree(vae[0], tmp_path / "vae")
    page_ = {**page(LABEL), FIRST: str(moved)}
    before = first_stage.joined(page_, str(tmp_path / "run"))
    shutil.rmtree(moved)
    after = first_stage.joined(page_, str(tmp_path / "run"))
    assert after[0] == before[0] and same(after[1], before[1])
    with pytest.raises(ConfigError, match="there is no folder"):
        first_stage.joined(page_, str(tmp_path / "other"))


def test_other_entries_change_its_task(vae, tmp_path):
    assert first_stage.named("runs/x") == ("runs/x", {})
    assert first_stage.named({"folder": "runs/x", "scale": 2.0}) == ("runs/x", {"scale": 2.0})
    joined, _ = first_stage.joined({**page(LABEL), FIRST: {"folder": str(vae[0]), "scale": 2.5}}, str(tmp_path / "run"))
    assert joined["task"][FIRST]["scale"] == 2.5 and build(joined["task"][FIRST]).scale == 2.5
    again, _ = first_stage.joined({**page(LABEL), FIRST: {"folder": str(vae[0]), "scale": 2.5}}, str(tmp_path / "run"))
    assert again == joined
    with pytest.raises(ConfigError, match="did you mean 'scale'"):
        first_stage.joined({**page(LABEL), FIRST: {"folder": str(vae[0]), "scael": 2.5}}, str(tmp_path / "third"))


def other_of(vae, tmp_path):
    """Another run of the same kind."""
    folder = tmp_path / "other_vae"
    save_start(folder, vae[1], jax.tree.map(lambda leaf: np.asarray(leaf) + 1, vae[2]))
    return folder


def trained(run, config):
    """As after the first checkpoint of a run."""
    save_start(run, {key: value for key, value in config.items() if key != FIRST}, {"a": np.zeros(2, np.float32)})


@pytest.mark.slow
def test_before_the_first_checkpoint_the_page_s_own_folder_counts(vae, tmp_path):
    """A start with one first stage that was killed, then one with another in the same workdir."""
    other, run = other_of(vae, tmp_path), str(tmp_path / "run")
    _, before = first_stage.joined({**page(LABEL), FIRST: str(vae[0])}, run)
    for _ in range(2):                                                         # the second time the copy is taken
        config, after = first_stage.joined({**page(LABEL), FIRST: str(other)}, run)
        assert not same(before, after) and same(after, open_run(other).model.params)
        assert same(open_run(tmp_path / "run" / FIRST).model.params, after)
    trained(tmp_path / "run", config)
    assert same(first_stage.joined({**page(LABEL), FIRST: str(vae[0])}, run)[1], after)       # it began with these


@pytest.mark.parametrize("then", [
    dict(trained_again=True),
    *(pytest.param(then, marks=pytest.mark.slow)
      for then in (
          dict(), dict(folder="other"), dict(scale=2.5), dict(scale=1.5, shift=0.5), dict(folder="gone"),
          dict(note="torn")))], ids=str)
def test_a_copy_that_was_left_is_taken_where_it_is_of_the_same_weights_and_changes(vae, tmp_path, caplog, then):
    source, run = shutil.copytree(vae[0], tmp_path / "vae"), tmp_path / "run"
    spec = dict(folder=str(source), scale=1.5)
    first_stage.joined({**page(LABEL), FIRST: spec}, str(run))
    changes = {key: value for key, value in then.items() if key in ("scale", "shift")}
    if then.get("folder") == "gone":
        shutil.rmtree(source)
    if then.get("folder") == "other":
        spec = spec | dict(folder=str(other_of(vae, tmp_path)))
    if "trained_again" in then:
        shutil.rmtree(source)
        save_start(source, vae[1], jax.tree.map(lambda leaf: np.asarray(leaf) + 2, vae[2]))
    if "note" in then:
        (run / FIRST / "source.json").write_text("{")
    want = vae[2] if then.get("folder") == "gone" else open_run(spec["folder"]).model.params
    spec = (dict(folder=spec["folder"]) if then == {} else spec) | changes
    joined, params = first_stage.joined({**page(LABEL), FIRST: spec}, str(run))
    inner = joined["task"][FIRST]
    assert same(params, want) and same(open_run(run / FIRST).model.params, want)
    assert (inner.get("scale"), inner.get("shift")) == (changes.get("scale", None if then == {} else 1.5), changes.get("shift"))
    assert ("replaced" in caplog.text) == (then.get("folder") != "gone")


def test_a_copy_of_an_unknown_source_that_is_gone_is_not_taken(vae, tmp_path):
    gone = shutil.copytree(vae[0], tmp_path / "vae")
    first_stage.joined({**page(LABEL), FIRST: str(gone)}, str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="there is no folder .*nowhere"):
        first_stage.joined({**page(LABEL), FIRST: str(tmp_path / "nowhere")}, str(tmp_path / "run"))


def test_nothing_is_written_before_it_is_kept(vae, tmp_path):
    first = first_stage.read({**page(LABEL), FIRST: str(vae[0])}, str(tmp_path / "run"))
    assert same(first.params, vae[2]) and not list(tmp_path.iterdir())
    first.keep()
    assert same(open_run(tmp_path / "run" / FIRST).model.params, vae[2])


def test_home_is_expanded(vae, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(vae[0].parent))
    _, params = first_stage.joined({**page(LABEL), FIRST: "~/run"}, str(tmp_path / "run"))
    assert same(params, vae[2])


@pytest.mark.slow
def test_of_a_clip_the_statistics_over_the_training_data_are_taken(clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(first_stage, "MOST", 40)
    monkeypatch.setattr(first_stage, "BATCH", 25)
    folder, config, weights = clip
    page_ = {"task": {"name": "..."}, "data": config["data"], FIRST: str(folder)}
    joined, params = first_stage.joined(page_, str(tmp_path / "run"))
    spec = joined["task"][FIRST]
    embedder = build(spec)
    assert isinstance(embedder, Embedder) and same(params["clip"], weights)
    source = Digits("train")
    images = to_unit(np.stack([source[i * 1500 // 40]["image"] for i in range(40)]))
    y = np.asarray(jax.jit(embedder.embed)(params, images))
    np.testing.assert_allclose(params["mean"], y.mean(0), atol=1e-4)
    np.testing.assert_allclose(params["std"], y.std(0), atol=1e-4)
    variance = np.sort(np.linalg.eigvalsh(np.cov(y.T)))[::-1]
    held = np.cumsum(variance)[embedder.components - 1] / variance.sum()
    assert held >= 0.99 and f"40 embeddings: {embedder.components} of " in capsys.readouterr().out
    again, stored = first_stage.joined(page_, str(tmp_path / "run"))                 # read from the copy: nothing is fitted
    assert again == joined and same(stored, params) and not capsys.readouterr().out


def test_the_empty_text_ends_where_the_tokenizer_says(clip):
    config = clip[1]
    tokens = [int(token) for token in build(config["data"]["decode"]).tokenizer("")]
    empty = first_stage.embedder_spec(config, 3)["empty"]
    filled = [*empty[:-1], *[empty[-1]] * (len(tokens) - len(empty) + 1)]
    assert filled == tokens and first_stage.embedder_spec(config, 3)["components"] == 3


def test_a_clip_without_texts_is_refused(clip, tmp_path):
    with pytest.raises(ConfigError, match="this CLIP came without a tokenizer: set data.decode.tokenizer of its page"):
        first_stage.embedder_spec({name: value for name, value in clip[1].items() if name != "data"}, 0)
    without = page(LABEL)["data"]
    without["decode"] = {name: value for name, value in without["decode"].items() if name != "tokenizer"}
    with pytest.raises(ConfigError, match="unCLIP needs captions: give data that has them, and data.decode.tokenizer"):
        next(first_stage.captioned(without, "test", 3))
    with_texts = {**without, "decode": {**without["decode"], "tokenizer": TOKENIZER}}
    assert set(next(first_stage.captioned(with_texts, "test", 3))) == {"image", "tokens"}
