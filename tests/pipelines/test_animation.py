"""How pictures arise: the looks, their file, and what has none."""
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines import animation, dalle
from diffusion_jax.pipelines.animation import HELD, arising, is_animation
from diffusion_jax.pipelines.dalle import Draw
from diffusion_jax.pipelines.pipeline import Pipeline, pipeline
from pipelines.test_tokens import ONE, RUN, THREE


@pytest.mark.parametrize(("every", "steps"), [(None, (1, 2, 3, 4)), (2, (2, 4)), (3, (1, 4))])
def test_the_last_look_is_what_a_call_makes(folders, every, steps):
    pipe = pipeline(folders.label)
    made = arising(pipe, 3, num=2, seed=1, every=every)
    assert made.steps == steps and made.looks.shape == (len(steps), 2, 8, 8, 1) and made.columns is None
    np.testing.assert_array_equal(made.looks[-1], pipe(3, num=2, seed=1).images)


def test_a_long_run_is_looked_at_about_as_often_as_an_animation_has_frames(folders, monkeypatch):
    monkeypatch.setattr(animation, "FRAMES", 5)
    assert len(arising(pipeline(folders.label).using(steps=23), 3).looks) == 6


def test_a_file_has_a_frame_for_each_look_and_holds_the_last(folders, tmp_path):
    pytest.importorskip("imageio")
    made = arising(pipeline(folders.label), [1, 2], num=2)
    assert made.columns == 2                                               # a row for each label
    assert made.save(tmp_path / "x.gif") == str(tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as gif:
        durations = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            durations.append(gif.info["duration"])
        assert sum(durations) == 100 * (4 + HELD) and gif.size[0] == gif.size[1]
    with pytest.raises(ConfigError, match=r"is written as .gif or .mp4: got x.png"):
        made.save("x.png")


@pytest.mark.parametrize(("out", "is_one"), [
    ("x.gif", True), ("a/x.mp4", True), ("x.png", False), ("x.gif/", False), ("x", False)])
def test_a_name_says_whether_it_is_an_animation(out, is_one):
    assert is_animation(out) == is_one


def test_what_does_not_arise_in_steps_of_one_model_is_refused(folders):
    for helpers in (dict(upsamplers=[folders.upsampler]), dict(rerank=folders.classifier, candidates=2)):
        with pytest.raises(ConfigError, match="the steps of one model: .*, end --out in .png") as error:
            arising(pipeline(folders.label, **helpers), 3)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="an animation of 6 pictures is made as one batch: give a smaller --num, or --batch 6"):
        arising(pipeline(folders.label), [1, 2], num=3, batch=5)


def test_tokens_are_drawn_as_a_call_draws_them_and_shown_row_by_row(monkeypatch):
    calls = []

    def drawn(model, how, text, num, seed, batch, codes):
        calls.append(batch)
        yield np.random.default_rng(seed).uniform(-1, 1, (num, 8, 8, 1)).astype(np.float32)

    monkeypatch.setattr(dalle, "generate", drawn)
    pipe = Pipeline(RUN, Draw())
    made = arising(pipe, [THREE, ONE], num=2, seed=3, batch=3)
    assert made.steps == (1, 2, 3, 4) and made.looks.shape == (4, 4, 8, 8, 1) and made.columns == 2
    np.testing.assert_array_equal(made.looks[-1], pipe([THREE, ONE], num=2, seed=3, batch=3).images)
    assert (made.looks[0][:, 2:] == 128).all() and calls == [3, 3]
    assert arising(pipe, THREE, every=3).steps == (1, 4) and calls[2:] == [100]
    monkeypatch.setattr(animation, "FRAMES", 2)
    assert arising(pipe, THREE).steps == (2, 4)
    with pytest.raises(ConfigError, match="every is 1 "):
        arising(pipe, THREE, every=0)
    assert len(calls) == 4
