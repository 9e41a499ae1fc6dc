"""Token models from the command line: prompts, completion and ranking, and what they refuse."""
import importlib.util
import shutil

import numpy as np
import pytest
from pages import ROOT, ask, page
from PIL import Image

from diffusion_jax.build import build
from diffusion_jax.data.image import to_unit
from diffusion_jax.data.pictures import grid
from diffusion_jax.pipelines.animation import arising
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.pipelines.request import Request
from diffusion_jax.train.checkpoint import config_of, load
from diffusion_jax.train.state import plain

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(token_runs):
    """Both runs, and two judges: a classifier and a CLIP."""
    for name in ("digits_classifier", "digits_clip"):
        ask("train", token_runs / name, config=page(name, evaluate={"num": 0}))
    return token_runs


def test_a_run_samples_without_its_first_stages_folder(folder, cli, tmp_path):
    run = shutil.copytree(folder / "digits_dalle", tmp_path / "run")
    assert config_of(run)["task"]["first_stage"]["model"]["codes"] == 16
    three, one = "a handwritten three", "a handwritten one"
    done = cli("--workdir", run, "--mode", "sample", "--prompt", three, "--prompt", one, "--num", 3, "--top_k", 5,
               "--temperature", 0.9, "--guidance", 2, "--out", tmp_path / "x.npz")
    assert done.code == 0, done.err
    found = np.load(tmp_path / "x.npz")
    assert found["arr_0"].shape == (6, 8, 8, 1) and found["prompts"].tolist() == [three] * 3 + [one] * 3
    assert cli("--workdir", run, "--mode", "sample", "--num", 4, "--out", f"{tmp_path}/all/").code == 0
    assert len(list((tmp_path / "all").glob("*.png"))) == 4


def test_completion_and_ranking(folder, cli, tmp_path):
    command = ("--workdir", folder / "digits_dalle", "--mode", "sample")
    np.savez(tmp_path / "given.npz", arr_0=np.full((2, 8, 8, 1), 200, np.uint8))
    prompt = ("--prompt", "a handwritten three", "--num", 2)
    assert cli(*command, *prompt, "--complete", tmp_path / "given.npz", "--out", tmp_path / "a.png").code == 0
    ranked = cli(*command, *prompt, "--rerank", folder / "digits_classifier", "--candidates", 4, "--out", tmp_path / "b.png")
    assert ranked.code == 0 and Image.open(tmp_path / "b.png").size[1] == 8
    alone = cli(*command, *prompt, "--candidates", 4)
    assert alone.code == 2 and "--rerank" in alone.err
    word = cli(*command, "--prompt", "a handwritten thre")
    assert word.code == 2 and "did you mean 'three'" in word.err
    option = cli(*command, *prompt, "--cads", "s=1")
    assert option.code == 2 and "sampling option" in option.err


@pytest.mark.parametrize("case", ["whole", "completed", "ranked"])
def test_an_animation_shows_the_rows_of_the_pictures_of_the_same_command(folder, cli, tmp_path, case):
    np.savez(tmp_path / "given.npz", arr_0=np.full((2, 8, 8, 1), 200, np.uint8))
    flags = {"whole": (), "completed": ("--complete", tmp_path / "given.npz"),
             "ranked": ("--rerank", folder / "digits_classifier", "--candidates", 3)}[case]
    run, prompt = folder / "digits_dalle", "a handwritten three"
    command = ("--workdir", run, "--mode", "sample", "--prompt", prompt, "--num", 4, "--batch", 3)
    for out in ("x.npz", "x.gif"):
        done = cli(*command, *flags, "--out", tmp_path / out)
        assert done.code == 0 and f"4 samples: {tmp_path / out}" in done.out, done.err
    images = np.load(tmp_path / "x.npz")["arr_0"]
    pipe = pipeline(run, rerank=flags[1], candidates=3) if case == "ranked" else pipeline(run)
    given = str(tmp_path / "given.npz") if case == "completed" else None
    made = arising(pipe, Request(prompt, complete=given), num=4, batch=3)
    np.testing.assert_array_equal(made.looks[-1], images)
    assert made.steps == ((1, 2) if case == "completed" else (1, 2, 3, 4))
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == len(made.steps)
        for frame, look in enumerate(made.looks):
            gif.seek(frame)
            shown, want = np.asarray(gif.convert("L"), int), grid(look)[..., 0].astype(int)
            factor = len(shown) // len(want)
            np.testing.assert_array_equal(shown[::factor, ::factor][: want.shape[0], : want.shape[1]], want)


def test_a_resumed_run_needs_its_own_folder_only(folder, tmp_path):
    run = shutil.copytree(folder / "digits_dalle", tmp_path / "run")
    config = page("digits_dalle", first_stage=str(folder / "digits_dvae"))
    hidden = (folder / "digits_dvae").rename(folder / "hidden")
    try:
        ask("train", run, config=page("digits_dalle", first_stage=config.first_stage, steps=6))
    finally:
        hidden.rename(folder / "digits_dvae")
    assert config_of(run)["steps"] == 6


def test_a_clip_keeps_the_best_candidates(folder, cli, tmp_path):
    """Prompt -> tokens -> images -> CLIP: of each prompt those whose embedding is nearest to its own, the nearest first."""
    run, texts = folder / "digits_dalle", ["a handwritten three", "a handwritten one"]
    command = ("--workdir", run, "--mode", "sample", "--prompt", texts[0], "--prompt", texts[1])
    assert cli(*command, "--num", 6, "--out", tmp_path / "all.npz").code == 0
    ranked = cli(*command, "--num", 2, "--rerank", folder / "digits_clip", "--candidates", 3, "--out", tmp_path / "best.npz")
    assert ranked.code == 0, ranked.err
    pool, best = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("all", "best"))
    config, task, params = load(folder / "digits_clip")
    tokens = np.stack([build(plain(config)["data"]["decode"]["tokenizer"])(text) for text in texts])
    cosine = task.encode_image(params, to_unit(pool)) @ task.encode_text(params, tokens).T
    for i in range(2):
        order = np.argsort(-cosine[6 * i : 6 * i + 6, i])[:2]
        np.testing.assert_array_equal(best[2 * i : 2 * i + 2], pool[6 * i + order])


def test_the_curve_of_reranking(folder, tmp_path, monkeypatch):
    """launch/rerank.py, with few images and one classifier as both judges."""
    spec = importlib.util.spec_from_file_location("rerank_curve", ROOT / "launch" / "rerank.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    monkeypatch.setattr(program, "NUMBERS", (1, 2))
    monkeypatch.setattr(program, "EACH", 2)
    judge = str(folder / "digits_classifier")
    program.main(str(folder / "digits_dalle"), judge, judge, str(tmp_path / "out"))
    head, *rows = (tmp_path / "out" / "rerank.csv").read_text().splitlines()
    assert head.startswith("candidates,") and "FID[digits_classifier]" in head and [row[0] for row in rows] == ["1", "2"]
