"""Whether samples show what their captions ask for, in a CLIP's eyes."""
from pathlib import Path

import numpy as np
import pytest
from pages import measuring

from diffusion_jax.build import ConfigError
from diffusion_jax.evaluation import clip as clip_metric
from diffusion_jax.evaluation import metrics


def test_the_own_caption_among_others():
    texts = np.eye(4)[[0, 1, 2, 3, 0]]
    prompts = ["a", "b", "c", "d", "a"]
    assert clip_metric.first_of(texts, texts, prompts) == 1.0
    assert clip_metric.first_of(texts[::-1], texts, prompts) == 0.6           # the first and the last have the same caption
    assert clip_metric.first_of(np.roll(texts, 1, axis=0), texts, prompts, among=2) == 0.2  # of equal scores the own is the worse


def test_the_best_candidate_is_judged():
    texts, prompts = np.eye(3), ["a", "b", "c"]
    views = np.stack([np.roll(texts, 1, axis=0), texts, texts], axis=1)
    judged = clip_metric.judge(views, texts, prompts)
    np.testing.assert_array_equal(judged.best, [1, 1, 1])
    assert judged.figures["cosine"] == 1 and judged.figures["own caption first of 10"] == 1
    assert judged.figures["best of"] == {"1": 0.0, "2": 100.0, "3": 100.0}
    assert "best of" not in clip_metric.judge(views[:, :1], texts, prompts).figures


def test_another_clip_chooses_what_is_judged(fresh, clip, monkeypatch):
    """The judge sees one picture of each caption, which another CLIP has chosen: here that of candidate `chosen` of each."""
    glide, judged = fresh("digits_glide"), []
    pool = np.repeat(np.arange(6, dtype=np.uint8) * 40, 64).reshape(6, 8, 8, 1)                # 2 captions, 3 candidates
    monkeypatch.setattr(clip_metric, "generated", lambda pipe, prompts, many, options: pool)
    monkeypatch.setattr(clip_metric.rerank, "scores", lambda run, goals, images: np.eye(3)[[2, 0]])
    features = clip_metric.contrast.image_features
    monkeypatch.setattr(clip_metric.contrast, "image_features", lambda *a: judged.append(a[1]) or features(*a))
    options = measuring(metric="clip", features=clip.folder, num=2, rerank=clip.folder, candidates=3, changes={"steps": 2})
    measured = metrics.measured(glide, options)
    np.testing.assert_array_equal(judged[0], pool[[2, 3]])
    np.testing.assert_array_equal(measured.gallery.samples, pool[[2, 3]])
    assert measured.figures["candidates"] == 3 and measured.figures["chosen by"] == clip.folder
    assert "best of" not in measured.figures


@pytest.mark.slow
def test_more_candidates_are_nearer_to_their_captions(fresh, clip):
    glide = fresh("digits_glide")
    options = measuring(metric="clip", features=clip.folder, num=6, candidates=3, batch=8, changes={"steps": 2})
    measured = metrics.measured(glide, options)
    best = list(measured.figures["best of"].values())
    assert list(measured.figures["best of"]) == ["1", "2", "3"] and best == sorted(best)
    assert measured.figures["captions"] == 6 and measured.figures["steps"] == 2
    assert measured.gallery.samples.shape == (6, 8, 8, 1) and Path(glide.folder, "rerank.png").is_file()


def test_what_is_refused(fresh, clip):
    run = fresh("digits")
    for options, says in (
        (dict(), "needs --features, the folder of a CLIP"),
        (dict(features=run.folder), "is no CLIP: give"),
        (dict(features=clip.folder, num=2), "this model reads no text"),
        (dict(features=clip.folder, prior="text"), "a prior .--prior. is for a decoder of unCLIP"),
        (dict(features=clip.folder, rerank=clip.folder), "needs both --rerank, .* and --candidates"),
        (dict(features=clip.folder, rerank=clip.folder, candidates=1), "chooses among candidates, and here is 1"),
        (dict(features=clip.folder, rerank=run.folder, candidates=2), "give the folder of a noisy classifier or a CLIP"),
    ):
        with pytest.raises(ConfigError, match=says):
            metrics.measured(run, measuring(metric="clip", **options))


def test_a_judge_that_reads_no_captions_is_refused_before_a_sample_is_made(fresh, clip, monkeypatch):
    monkeypatch.setattr(clip_metric, "generated", lambda *_: pytest.fail("samples are made"))
    mute = clip._replace(config={name: part for name, part in clip.config.items() if name != "data"})
    monkeypatch.setattr(clip_metric, "open_run", lambda folder: mute)
    with pytest.raises(ConfigError, match="came without a tokenizer"):
        metrics.measured(fresh("digits"), measuring(metric="clip", features=clip.folder, num=4))
