"""A tiny CLIP and a tiny GLIDE from page to figures: retrieval, prompts, guidance by CLIP, the metric, editing with text."""
import json
import re

import numpy as np
import pytest
from pages import ask, page

from diffusion_jax.build import ConfigError
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.pictures import save_png
from diffusion_jax.modes import evaluate
from diffusion_jax.modes.options import built
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.pipelines.session import replayed

PROMPTS = ("a handwritten three", "a handwritten seven")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of configs/digits_clip.py:tiny and configs/digits_glide.py:tiny after two steps."""
    folder = tmp_path_factory.mktemp("text")
    for name in ("digits_clip", "digits_glide"):
        config = page(name, steps=2)
        config.evaluate.num = 0
        ask("train", folder / name, config=config)
    return folder


def measured(folder, **leaves):
    return evaluate.measured(built(evaluate.Options, leaves), str(folder)).figures


def npz(folder, out, **options):
    ask("sample", folder, **{"out": str(out), "steps": 2} | options)
    with np.load(out) as found:
        return found["arr_0"]


@pytest.mark.slow
def test_a_clip_is_measured(runs, tmp_path):
    for metric in ("retrieval", "zero_shot"):
        report = measured(runs / "digits_clip", metric=metric, num=20)
        assert all(0 <= value <= 1 for name, value in report.items() if name.startswith(("R@", "accuracy", "image to")))
    assert report["text of class 0"] == "a handwritten zero"
    measured(runs / "digits_clip", metric="tsne", num=20)
    assert (runs / "digits_clip" / "tsne.png").is_file()


@pytest.mark.slow
def test_prompts_guidance_and_the_metric(runs, tmp_path):
    glide, clip = runs / "digits_glide", str(runs / "digits_clip")
    plain = npz(glide, tmp_path / "a.npz", prompt=PROMPTS, num=3)
    assert plain.shape == (6, 8, 8, 1)
    guided = npz(glide, tmp_path / "b.npz", prompt=PROMPTS, num=3, classifier=clip, classifier_scale=20.0)
    assert (plain != guided).any()
    report = measured(glide, metric="clip", features=clip, num=10, candidates=3, steps=2)
    best = list(report["best of"].values())
    assert list(report["best of"]) == ["1", "2", "3"] and best == sorted(best) and (glide / "rerank.png").is_file()


@pytest.mark.slow
def test_a_clip_judges_a_transformer_over_tokens(token_runs, runs, cli):
    """The more candidates the nearer to the captions, of pictures of 8x8 that are drawn token by token."""
    dalle, clip = token_runs / "digits_dalle", str(runs / "digits_clip")
    report = measured(dalle, metric="clip", features=clip, num=6, candidates=3, temperature=0.9)
    best = list(report["best of"].values())
    assert len(best) == 3 and best == sorted(best) and report["captions"] == 6 and report["temperature"] == 0.9
    chosen = measured(dalle, metric="clip", features=clip, num=6, candidates=3, temperature=0.9, rerank=clip)
    assert 100 * chosen["cosine"] == pytest.approx(best[-1], abs=1e-4)          # of one CLIP that chooses and judges
    for flags, says in ((("--features", clip, "--steps", 3), "unknown .* 'steps'"), ((), "needs --features"),
                        (("--features", clip, "--rounding", "down"), "--rounding is for diffusion models"),
                        (("--features", clip, "--prior", "text"), "prior .--prior. is for diffusion models")):
        done = cli("--workdir", dalle, "--mode", "evaluate", *flags)
        assert done.code == 2 and re.search(says, done.err) and done.err.count("\n") == 1, done.err


@pytest.mark.slow
def test_an_inpainter_is_fine_tuned_and_edits_with_text(runs, tmp_path):
    config, base = page("digits_glide", "inpaint", steps=2), page("digits_glide")
    for section in ("model", "batch", "checkpoint", "log_every"):
        config[section] = base[section]
    config.task.cond.parts[0].update(base.task.cond.parts[0])
    config.sample.update(num=4, every=2, steps=2)
    config.init = str(runs / "digits_glide")
    ask("train", tmp_path / "inpaint", config=config)
    save_png(tmp_path / "x.png", Digits("test")[0]["image"])
    options = {"images": str(tmp_path / "x.png"), "rect": ("0,0,8,4",), "prompt": PROMPTS[:1],
               "session": str(tmp_path / "s.json")}
    ask("edit", tmp_path / "inpaint", op="inpaint", out=str(tmp_path / "y.png"), steps=2, **options)
    states = replayed(pipeline(tmp_path / "inpaint"), json.loads((tmp_path / "s.json").read_text()))
    np.testing.assert_array_equal(states[1][:, 4:], states[0][:, 4:])
    assert (states[1][:, :4] != states[0][:, :4]).any()


def test_what_is_refused(tiny_run):
    with pytest.raises(ConfigError, match="needs --features, the folder of a CLIP"):
        measured(tiny_run, metric="clip")
    with pytest.raises(ConfigError, match="is no CLIP: give"):
        measured(tiny_run, metric="clip", features=str(tiny_run))
