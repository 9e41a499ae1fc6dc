"""unCLIP from its pages to images: trained parts, chained by the command line, measured and edited."""
from pathlib import Path

import jax
import numpy as np
import pytest
from pages import ask, measuring, page

from diffusion_jax.build import ConfigError
from diffusion_jax.data import image
from diffusion_jax.evaluation import metrics
from diffusion_jax.pipelines.unclip import conditions_of, prior_of
from diffusion_jax.runs.folder import open_run
from diffusion_jax.tasks.embedder import CODES, DOTS

PROMPTS = ("a handwritten three", "a handwritten seven")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a tiny CLIP, decoder, both priors and an upsampler."""
    folder = tmp_path_factory.mktemp("unclip")
    ask("train", folder / "clip", config=page("digits_clip"))
    for name, arg in (("decoder", "tiny"), ("prior", "prior,tiny"), ("ar", "ar,tiny"), ("up", "upsample,tiny")):
        config = page("digits_unclip", arg)
        if "first_stage" in config:
            config.first_stage = str(folder / "clip")
        if name == "decoder":
            config.steps = config.optim.steps = 4                          # few large steps: the network starts as zero
            config.optim.update(lr=0.02, warmup=0)
        ask("train", folder / name, config=config)
    return folder


@pytest.mark.slow
def test_every_prior_makes_images_and_is_measured(runs, tmp_path):
    made = {}
    for prior in (str(runs / "prior"), str(runs / "ar"), "text", "caption"):
        out = tmp_path / "x.npz"
        ways = {"prompt": PROMPTS, "num": 2, "prior": prior, "out": str(out), "which": "params", "guidance": 4.0}
        ask("sample", runs / "decoder", **ways)
        made[prior] = np.load(out)["arr_0"]
        assert made[prior].shape == (4, 8, 8, 1)
    assert len({images.tobytes() for images in made.values()}) == 4
    ask("sample", runs / "decoder", **ways, upsampler=(str(runs / "up"),))
    assert np.load(out)["arr_0"].shape == (4, 16, 16, 1)
    options = measuring(metric="clip", features=str(runs / "clip"), num=10, prior=str(runs / "prior"))
    found = metrics.measured(open_run(runs / "decoder"), options).figures
    assert 0 <= found["own caption first of 10"] <= 1
    refused = (
        ({"prompt": PROMPTS}, "give a prior"),
        ({"prior": str(runs / "clip")}, "holds a CLIP: give the folder of a prior"),
        ({"prior": "text", "prior_guidance": 2.0}, "give --prior FOLDER"),
    )
    for options, says in refused:
        with pytest.raises(ConfigError, match=says):
            ask("sample", runs / "decoder", **options)
    with pytest.raises(ConfigError, match="holds a prior of unCLIP: give the folder of a diffusion model"):
        ask("sample", runs / "prior")


@pytest.mark.slow
def test_a_guided_prior_of_the_same_seed_makes_the_same_embeddings(runs):
    decoder = open_run(runs / "decoder")
    prior = prior_of(runs / "ar", decoder, guidance=2.0)
    few, many = (conditions_of(decoder, prior, PROMPTS[:n], n, seed=3)["clip_image"] for n in (1, 2))
    np.testing.assert_allclose(few[0], many[0], atol=1e-5)
    other = conditions_of(decoder, prior, PROMPTS[:1], 1, seed=4)["clip_image"]
    assert np.abs(few - other).max() > 1e-3


@pytest.mark.slow
def test_pictures_are_varied_interpolated_and_taken_apart(runs, tmp_path):
    pictures = np.load(_samples(runs, tmp_path))["arr_0"]
    ops = {
        "variations": ({"values": (0, 1), "num": 2}, (2, 6)), "interpolate": ({"values": (0, 0.5, 1)}, (3, 2)),
        "text_diff": ({"values": (0, 0.3), "prompt": PROMPTS[:1], "to_prompt": PROMPTS[1:]}, (2, 3)),
        "components": ({"values": (1, 4)}, (2, 3)),
    }
    for op, (given, (rows, columns)) in ops.items():
        out = tmp_path / f"{op}.png"
        ways = {"op": op, "images": str(tmp_path / "x.npz"), "out": str(out), "steps": "20"}
        ask("edit", runs / "decoder", **ways | given)
        assert image.read(out).shape == (rows * 10 - 2, columns * 10 - 2, 1)
    assert len(pictures) == 3
    for given, says in (({"op": "interpolate"}, "needs --images and --values"),
                        ({"op": "components", "images": str(tmp_path / "x.npz"), "values": (0,)},
                         "a value of components .--values. is 1 or more"),
                        ({"op": "text_diff", "images": str(tmp_path / "x.npz"), "values": (0,)}, "needs --prompt")):
        with pytest.raises(ConfigError, match=says):
            ask("edit", runs / "decoder", **given)


@pytest.mark.slow
def test_a_decoder_has_the_seed_and_no_text_to_guide_away_from(runs, tmp_path):
    made = []
    for seed in (3, 3, 4):
        ask("sample", runs / "decoder", prompt=PROMPTS[:1], num=2, prior=str(runs / "ar"), seed=seed, which="params",
            guidance=4.0, out=str(tmp_path / "x.npz"))
        made.append(np.load(tmp_path / "x.npz")["arr_0"].tobytes())
    assert made[0] == made[1] != made[2]
    with pytest.raises(ConfigError, match="leave it out"):
        ask("sample", runs / "decoder", prompt=PROMPTS[:1], prior="text", guidance=2.0, negative="a handwritten one")


def _samples(runs, folder):
    """Three pictures of the decoder."""
    ask("sample", runs / "decoder", num=3, out=str(folder / "x.npz"))
    return Path(folder, "x.npz")


@pytest.mark.slow
def test_the_first_stage_holds_the_statistics_of_the_training_images(runs):
    model = open_run(runs / "ar").model
    first, params = model.task.first_stage, model.first
    raw = conditions_of(open_run(runs / "decoder"), None, None, 100)
    y, mean = raw["clip_image"], np.asarray(params["mean"])[None]
    again = first.decode(params, first.encode(params, y))
    assert 1 <= first.components <= 64
    assert np.mean((again - y) ** 2) < 0.02 * np.mean((y - mean) ** 2)
    dots = np.bincount(first.dot(params, y, raw["clip_text"]), minlength=DOTS)
    assert dots.max() < 30 and len(dots) == DOTS and first.encode(params, y).max() < CODES
    np.testing.assert_allclose(first.restored(params, first.standardised(params, y)), y, atol=1e-4)
    assert jax.tree.leaves(params)[0].dtype == np.float32
