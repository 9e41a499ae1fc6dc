"""What is frozen beside a run that is planned: autoencoders and CLIPs by their pages, whether a folder holds them or not."""
import jax
import pytest
from pages import page

from diffusion_jax.build import ConfigError
from diffusion_jax.planning import frozen, layouts
from diffusion_jax.pretrained import perceptual
from diffusion_jax.train.state import plain


def stage(monkeypatch, name):
    """A page whose first stage lies in a folder that holds the run of another page."""
    other = plain(page(name))
    monkeypatch.setattr(frozen, "holds_run", lambda folder: folder == "runs/first")
    monkeypatch.setattr(frozen, "config_of", lambda folder: other)
    return other


@pytest.mark.slow
def test_a_first_stage_is_planned_with_what_trains_on_it(monkeypatch):
    other = stage(monkeypatch, "digits_dvae")
    config = plain(page("digits_dalle")) | {"first_stage": "runs/first"}
    work = layouts.work_of(config)
    assert work.batch["image"].shape[1:] == tuple(other["task"]["shape"])
    assert set(work.frozen) == {"first_stage"} and layouts.size(work.frozen) > 0
    without = layouts.work_of(config | {"first_stage": "runs/nowhere"})
    assert without.frozen is None and set(without.batch) == {"codes", "tokens"}
    assert sum(without.model_flops.values()) < sum(work.model_flops.values())
    assert jax.tree.structure(without.state.params) == jax.tree.structure(work.state.params)


def test_a_first_stage_that_encodes_nothing_is_refused(monkeypatch):
    stage(monkeypatch, "digits_classifier")
    config = plain(page("digits_dalle")) | {"first_stage": {"folder": "runs/first"}}
    with pytest.raises(ConfigError, match="first stages: runs/first holds a noisy classifier"):
        layouts.work_of(config)


@pytest.mark.parametrize("name", ["digits_unclip", "flowers102_features"])
def test_what_a_clip_makes_is_not_there_without_it(name):
    with pytest.raises(ConfigError, match="reads clip_image.*, which a CLIP makes: name its folder in config.first_stage"):
        layouts.work_of(plain(page(name)) | {"first_stage": "runs/nowhere"})


@pytest.mark.parametrize("first", ["lpips=vgg", "runs/first"])
def test_lpips_is_planned_with_the_autoencoder_that_trains_by_it(monkeypatch, first):
    """Of the package, which need not be installed, or of a folder: VGG-16's 14,714,688 weights and the 1,472 of its heads."""
    monkeypatch.setattr(frozen, "holds_run", lambda folder: folder == "runs/first")
    monkeypatch.setattr(frozen, "config_of", lambda folder: perceptual.page_of("vgg"))
    config = plain(page("emoji_vae", "tiny")) | {"first_stage": first}
    config["task"]["shape"] = (16, 16, 1)
    config["task"]["losses"]["perceptual_weight"] = 1.0
    work = layouts.work_of(config)
    assert work.batch["image"].shape[1:] == (16, 16, 1)
    assert sum(leaf.size for leaf in jax.tree.leaves(work.frozen)) == 14_714_688 + 1_472


@pytest.mark.slow
def test_a_prior_is_planned_with_its_clip():
    """The embedder of a CLIP's page: it runs in every step, and has statistics beside the CLIP's weights."""
    prior, clip = (plain(page(*name)) for name in (("digits_unclip", "prior"), ("digits_clip", "")))
    work = layouts.work_of(prior, clip)
    towers = layouts.work_of(clip)
    more = layouts.size(work.frozen) - layouts.size(towers.state.params)
    features = clip["model"]["text"]["features"]
    assert set(work.batch) == {"image", "tokens"}
    assert more == 4 * (features * (features + 4) + 31)  # basis; mean, std, low, high; quantiles of the likeness
