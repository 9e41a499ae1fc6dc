"""Between pictures and latents, with a first stage whose latents are means of 2 x 2 pixels."""
from dataclasses import dataclass
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines import latent
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.request import Request
from diffusion_jax.runs.folder import Model, Run
from diffusion_jax.tasks import kinds
from pipelines.toy_task import make, parameters, unused

TILES = []
PICTURES = np.random.default_rng(0).uniform(-0.9, 0.9, (2, 8, 8, 1)).astype(np.float32)
FIRST = {"scale": jnp.float32(3.0)}


@dataclass(frozen=True)
class Halves:
    """x = scale times the mean of 2 x 2 pixels."""

    shape = (8, 8, 1)
    noun = "an autoencoder"
    needs = ()
    makes = ("image",)
    num_classes = 0
    init = memory = loss = project = prepare = posterior = unused

    def blank(self, raw):
        """What `encode` makes, of zeros."""
        return {**raw, "image": jnp.zeros_like(raw["image"][:, ::2, ::2])}

    def encode(self, params, images, eps=None):
        b, h, w, c = images.shape
        return params["scale"] * images.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))

    def decode(self, params, x, tile=0):
        TILES.append(tile)
        return x.repeat(2, axis=1).repeat(2, axis=2) / params["scale"]


TASK = make(shape=(4, 4, 1), first_stage=Halves())
MODEL = Model(parameters(0.1, -0.2, 0.3, 0.05), FIRST, TASK)
PIXELS = Model(parameters(0.1, -0.2, 0.3, 0.05), None, make(shape=(8, 8, 1)))


def means(images):
    """[B, 8, 8, 1] -> [B, 4, 4, 1], in NumPy."""
    return sum(images[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4


def test_the_toy_is_a_first_stage():
    assert isinstance(Halves(), kinds.Encoding) and TASK.autoencoder == Halves() and TASK.picture_shape == (8, 8, 1)


def test_pictures_become_latents_and_back():
    x = latent.encode(MODEL, PICTURES)
    np.testing.assert_allclose(x, 3 * means(PICTURES), atol=1e-5)
    back = latent.decode(MODEL, x)
    np.testing.assert_allclose(back, means(PICTURES).repeat(2, 1).repeat(2, 2), atol=1e-5)


def test_pixels_stay_as_they_are():
    for way in (latent.encode, latent.decode):
        np.testing.assert_array_equal(way(PIXELS, PICTURES), PICTURES)
    batches = iter([PICTURES])
    assert latent.decoded(PIXELS, batches) is batches


def test_batches_are_decoded_as_they_come():
    parts = list(latent.decoded(MODEL, iter([np.ones((2, 4, 4, 1), np.float32), np.zeros((1, 4, 4, 1), np.float32)])))
    assert [part.shape for part in parts] == [(2, 8, 8, 1), (1, 8, 8, 1)] and isinstance(parts[0], np.ndarray)
    np.testing.assert_allclose(parts[0], 1 / 3, atol=1e-6)


def test_a_first_stage_that_is_not_there_is_one_line_at_once():
    bare = MODEL.replace(first=None)
    for way, x in ((latent.encode, PICTURES), (latent.decode, PICTURES), (latent.decoded, iter([]))):
        with pytest.raises(ConfigError, match="has no first stage to decode them: give the run's folder"):
            way(bare, x)


@pytest.mark.parametrize(("side", "tile"), [(latent.TILE, 0), (latent.TILE + 4, latent.TILE)])
def test_large_latents_are_decoded_in_tiles(side, tile):
    TILES.clear()
    latent.decode(MODEL, jnp.zeros((1, 4, side, 1)))
    assert [tile] == TILES


def test_a_latent_is_known_where_all_of_its_pixels_are():
    mask = np.ones((1, 8, 8, 1), np.float32)
    mask[0, 3, 5] = 0                                                            # one pixel
    mask[0, 6:, :2] = 0                                                          # a whole latent
    known = np.asarray(latent.is_known(MODEL, mask))
    want = np.ones((1, 4, 4, 1))
    want[0, 1, 2] = want[0, 3, 0] = 0
    np.testing.assert_array_equal(known, want)


def inpainting(last):
    cond = SimpleNamespace(mask_last=True) if last else SimpleNamespace()
    return Model(None, FIRST, SimpleNamespace(autoencoder=Halves(), shape=(4, 4, 1), cond=SimpleNamespace(parts=(1, cond))))


def test_inpainting_networks_see_the_mask_first_and_grey_or_last_and_black():
    mask = np.ones((2, 8, 8, 1), np.float32)
    mask[:, 2:6, 2:6] = 0
    small = 1 - mask[:, ::2, ::2]
    grey = latent.inpaint_condition(inpainting(False), PICTURES, mask)["inpaint"]
    np.testing.assert_allclose(grey[..., :1], small, atol=1e-6)
    np.testing.assert_allclose(grey[..., 1:], 3 * means(PICTURES * mask), atol=1e-5)
    black = latent.inpaint_condition(inpainting(True), PICTURES, mask)["inpaint"]
    np.testing.assert_allclose(black[..., :1], 3 * means(np.where(mask > 0, PICTURES, -1)), atol=1e-5)
    np.testing.assert_allclose(black[..., 1:], 2 * small - 1, atol=1e-6)


def test_a_pipeline_of_latents_makes_pictures():
    pipe = Pipeline(Run("runs/x", 0, "params", {}, MODEL), Recipe(steps=3))
    assert pipe.picture_shape == (8, 8, 1)
    made = pipe(Request(label=1), num=2).images
    assert made.shape == (2, 8, 8, 1)
    np.testing.assert_array_equal(made[:, ::2, ::2], made[:, 1::2, 1::2])
    looks = list(pipe.stream(Request(label=1), num=2, every=2))
    assert [step for step, _ in looks] == [1, 3] and np.abs(looks[-1][1].astype(int) - made).max() <= 1
    before, after = pipe.edit.inpaint(made[:1], [[0, 0, 4, 8]], 2).images
    np.testing.assert_array_equal(after[:, 4:], before[:, 4:])
    assert (after[:, :4] != before[:, :4]).any()
