"""unCLIP put together: where the decoder's embeddings come from, and between two of them."""
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.image import to_unit
from diffusion_jax.pipelines import unclip
from diffusion_jax.pipelines.dalle import Draw
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.request import Request
from diffusion_jax.pipelines.sampling import generate
from diffusion_jax.tasks.clip import Contrastive
from pipelines import unclip_task
from pipelines.unclip_task import DECODER, EMBEDDER, FEATURES, first, runs, texts

PROMPTS = ("a handwritten three", "a handwritten nine")
TOKENS = np.array([[1, 2, 6], [1, 2, 12]])
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def prior():
    return unclip.prior_of(runs().prior, runs().decoder, steps=3)


@pytest.fixture(scope="module")
def ar():
    return unclip.prior_of(runs().ar, runs().decoder)


def conditions(prior=None, prompts=PROMPTS, num=4, decoder=None, **options):
    return unclip.conditions_of(decoder or runs().decoder, prior, prompts, num, **options)


# Between embeddings ---------------------------------------------------------------------------------------------------------


def test_noise_is_turned_as_one_vector():
    a, b = RNG.normal(size=(2, 3, 4, 4, 1))
    flat = unclip.slerp(a.reshape(3, 16), b.reshape(3, 16), 0.3)
    np.testing.assert_allclose(unclip.slerp_images(a, b, 0.3), np.reshape(flat, a.shape), rtol=1e-5)


def test_towards_a_text_turns_by_the_share_of_the_angle_and_keeps_the_length():
    y, text, base = RNG.normal(size=(3, 1, FEATURES))
    whole = np.arccos((y * (text - base)).sum() / np.linalg.norm(y) / np.linalg.norm(text - base))
    for share in (0.0, 0.25, 1.0):
        turned = np.asarray(unclip.toward(y, jnp.asarray(text), jnp.asarray(base), share))
        np.testing.assert_allclose(np.linalg.norm(turned), np.linalg.norm(y), rtol=1e-5)
        angle = np.arccos(np.clip((y * turned).sum() / np.linalg.norm(y) ** 2, -1, 1))
        np.testing.assert_allclose(angle, share * whole, atol=2e-3)


# Where they come from -------------------------------------------------------------------------------------------------------


def test_the_text_s_own_embedding_or_none():
    raw = conditions("text")
    np.testing.assert_allclose(raw["clip_image"], np.repeat(texts(TOKENS), 2, axis=0), atol=1e-5)
    np.testing.assert_array_equal(raw["clip_text"], raw["clip_image"])
    raw = conditions("caption")
    assert raw["with_image"].tolist() == [0] * 4
    np.testing.assert_allclose(raw["clip_text"], np.repeat(texts(TOKENS), 2, axis=0), atol=1e-5)


def test_embeddings_that_are_given():
    y = RNG.normal(size=(2, FEATURES)).astype(np.float32)
    raw = conditions(embedding=y)
    np.testing.assert_array_equal(raw["clip_image"], np.repeat(y, 2, axis=0))
    np.testing.assert_allclose(raw["clip_text"], np.repeat(texts(TOKENS), 2, axis=0), atol=1e-5)
    raw = conditions(embedding=y, prompts=None)
    np.testing.assert_array_equal(raw["clip_text"], raw["clip_empty"])
    np.testing.assert_array_equal(raw["text_mask"], raw["empty_mask"])


def test_without_prompt_and_prior_those_of_held_out_images_and_their_captions():
    raw = conditions(prompts=None, num=3)
    source = Digits("test")
    rows = [source[i * 297 // 3] for i in range(3)]
    images = to_unit(np.stack([row["image"] for row in rows]))
    np.testing.assert_allclose(raw["clip_image"], unclip_task.embed(images), atol=1e-5)
    tokens = runs().decoder.tokens([row["caption"] for row in rows])
    np.testing.assert_allclose(raw["clip_text"], texts(tokens), atol=1e-5)


def test_without_a_prompt_a_prior_reads_held_out_captions(prior):
    raw = conditions(prior, prompts=None, num=2)
    captions = [Digits("test")[i]["caption"] for i in (0, 148)]
    np.testing.assert_allclose(raw["clip_text"], texts(runs().decoder.tokens(captions)), atol=1e-5)
    np.testing.assert_allclose(raw["clip_image"], conditions(prior, prompts=captions, num=2)["clip_image"], atol=1e-5)


@pytest.mark.parametrize("best", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_of_a_prior_s_embeddings_the_nearest_to_the_text_is_kept(prior, best):
    several = prior._replace(best=best)
    made = unclip.embeddings(several, TOKENS, seed=5)
    raw = {name: np.asarray(value) for name, value in
           jax.jit(EMBEDDER.texts)(first(), np.repeat(TOKENS, best, axis=0)).items()}
    x = np.concatenate(list(generate(prior.model, prior.recipe, raw, 2 * best, 5)))
    y = np.reshape(2.0 * x + 0.3, (2, best, FEATURES))                          # the deviation and the mean
    text = np.asarray(texts(TOKENS))
    cosine = (y * text[:, None]).sum(-1) / np.linalg.norm(y, axis=-1) / np.linalg.norm(text, axis=-1)[:, None]
    np.testing.assert_allclose(made, y[np.arange(2), cosine.argmax(1)], atol=1e-4)


@pytest.mark.parametrize("name", ["prior", pytest.param("ar", marks=pytest.mark.slow)])
def test_an_embedding_does_not_depend_on_what_is_made_beside_it(name, prior, ar):
    which = {"prior": prior, "ar": ar}[name]
    whole = unclip.embeddings(which, TOKENS, seed=5)
    assert whole.shape == (2, FEATURES) and np.abs(whole[0] - whole[1]).max() > 1e-3
    np.testing.assert_allclose(unclip.embeddings(which, TOKENS[:1], seed=5), whole[:1], atol=1e-4)
    np.testing.assert_allclose(unclip.embeddings(which, TOKENS, seed=5, batch=3), whole, atol=1e-4)
    assert np.abs(unclip.embeddings(which, TOKENS, seed=6) - whole).max() > 1e-3


def test_scales_and_checkpoints_of_a_prior_share_a_program(ar):
    guided = ar._replace(recipe=Draw(guidance=2.0))
    unclip.embeddings(guided, TOKENS, seed=5)
    before = unclip._embedded._cache_size()
    for recipe, seed in ((Draw(guidance=2.0), 0), (Draw(guidance=7.0), 1)):
        other = jax.tree.map(lambda leaf: 1.1 * leaf, ar.model.params)
        unclip.embeddings(ar._replace(recipe=recipe, model=ar.model.replace(params=other)), TOKENS, seed)
    assert unclip._embedded._cache_size() == before


def test_prompts_reach_the_pictures_through_every_prior(prior, ar):
    pipe = Pipeline(runs().decoder, Recipe(steps=3))
    made = [replace(pipe, prior=way)(PROMPTS, num=2, seed=1).images for way in ("text", "caption", prior, ar)]
    made.append(pipe(Request(PROMPTS, embedding=np.asarray(texts(TOKENS))), num=2, seed=1).images)
    np.testing.assert_array_equal(made[4], made[0])                             # the same embeddings, given
    assert all(images.shape == (4, 8, 8, 1) for images in made)
    assert len({images.tobytes() for images in made}) == 4


# Which prior ----------------------------------------------------------------------------------------------------------------


def test_a_prior_samples_as_its_page_says_but_for_what_is_changed():
    page = {"sample": {"num": 10, "every": 5, "steps": 7, "sampler": "heun"}}
    run = runs().prior._replace(config=page)
    assert unclip.prior_of(run, runs().decoder).recipe == Recipe(steps=7, sampler="heun")
    assert unclip.prior_of(run, runs().decoder, 4, guidance=3.0).recipe == Recipe(steps=7, sampler="heun", guidance=3.0)
    assert unclip.prior_of(run, runs().decoder, 4).best == 4 and unclip.prior_of(run, runs().decoder).best == unclip.BEST
    assert unclip.prior_of(runs().ar, runs().decoder, guidance=3.0).recipe == Draw(guidance=3.0)


def test_a_prior_without_a_clip_has_the_decoder_s():
    bare = runs().prior._replace(model=runs().prior.model.replace(first=None))
    assert unclip.prior_of(bare, runs().decoder).model.first is runs().decoder.model.first
    other = first(9)
    own = runs().prior._replace(model=runs().prior.model.replace(first=other))
    assert unclip.prior_of(own, runs().decoder).model.first is other


def test_ways_and_folders_that_are_not_there():
    assert unclip.prior_of(None, runs().decoder) is None                        # no folder `prior` in it
    assert not unclip.own_upsampler(runs().decoder)
    pixels = replace(DECODER, first_stage=None)
    none = runs().decoder._replace(model=runs().decoder.model.replace(task=pixels))
    assert unclip.prior_of(None, none) is None
    for where in ("text", runs().prior):
        with pytest.raises(ConfigError, match="a prior .--prior. is for a decoder of unCLIP"):
            unclip.prior_of(where, none)


def test_what_came_with_an_imported_decoder_is_taken(monkeypatch, tmp_path):
    decoder = runs().decoder._replace(folder=str(tmp_path))
    for name in (unclip.FOLDER, unclip.UPSAMPLER):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(unclip, "holds_run", lambda folder: folder.is_dir())
    monkeypatch.setattr(unclip, "open_run", lambda folder, *_, **options: runs().prior._replace(folder=str(folder)))
    assert unclip.prior_of(None, decoder, 3, guidance=2.0).run.folder == str(tmp_path / "prior")
    assert unclip.own_upsampler(decoder) == [str(tmp_path / "upsampler")]
    assert unclip.prior_of("text", decoder) == "text"                           # unless one is named


@pytest.mark.parametrize(("where", "options", "says"), [
    ("text", dict(guidance=2.0), "are of a prior's folder: give --prior FOLDER"),
    (None, dict(steps=2), "are of a prior's folder: give --prior FOLDER"),
    ("caption", dict(best=4), "are of a prior's folder: give --prior FOLDER"),
    ("ar", dict(steps=2), "--prior_steps is for a diffusion prior"),
    ("prior", dict(stepps=2), "did you mean 'steps'"),
    ("nowhere", {}, "there is no folder"),
], ids=str)
def test_changes_that_a_prior_does_not_have(where, options, says):
    with pytest.raises(ConfigError, match=says):
        unclip.prior_of(getattr(runs(), where) if where in ("ar", "prior") else where, runs().decoder, **options)


def test_a_prior_of_another_clip_is_refused():
    wide = replace(EMBEDDER, clip=Contrastive(replace(EMBEDDER.clip.model, text=replace(EMBEDDER.clip.model.text, features=8)),
                                              (4, 4, 1)))
    other = runs().ar._replace(model=runs().ar.model.replace(task=replace(runs().ar.task, first_stage=wide)))
    with pytest.raises(ConfigError, match="the prior makes embeddings of 8 channels, the decoder reads 6"):
        unclip.prior_of(other, runs().decoder)


def test_what_is_missing_is_one_line(prior):
    with pytest.raises(ConfigError, match="a decoder makes images of embeddings: give a prior .--prior., its folder or one of"):
        conditions()
    with pytest.raises(ConfigError, match="this model came without data: give a prompt .--prompt. and a prior .--prior."):
        conditions(prompts=None, decoder=runs().blind)
    for y in (np.zeros((3, FEATURES)), np.zeros((1, FEATURES + 1)), np.zeros((8, FEATURES))):
        with pytest.raises(ConfigError, match="embedding has .*this decoder reads 6 channels, and 4 images need"):
            conditions(embedding=y)
    for where in ("../../x", "prior", ""):
        with pytest.raises(ConfigError, match="unknown prior"):
            unclip.restored(where, None, runs().decoder)
    for best in (0, "2", 10**12, True):
        with pytest.raises(ConfigError, match="best is"):
            unclip.restored({"run": {}, "recipe": {}, "best": best}, None, runs().decoder)
    broken = jax.tree.map(lambda leaf: np.nan * leaf, prior.model.params)
    with pytest.raises(ConfigError, match="the prior's embeddings are not finite"):
        conditions(prior._replace(model=prior.model.replace(params=broken)))
    with pytest.raises(ConfigError, match="negative .--negative. is for a model that reads nothing but a text"):
        Pipeline(runs().decoder, Recipe(steps=3, guidance=2.0), prior="text")(Request(PROMPTS[0], "eight"))


@pytest.mark.parametrize("name", ["text", "caption", "prior", "ar"])
def test_what_a_file_says_of_a_prior_gives_it_back(name, prior, ar):
    which = {"prior": prior._replace(best=5), "ar": ar._replace(recipe=Draw(temperature=0.5))}.get(name, name)
    again = unclip.restored(unclip.described(which), lambda identity: getattr(runs(), name), runs().decoder)
    if isinstance(which, str):
        assert again == which
    else:
        assert (again.recipe, again.best, again.run.folder) == (which.recipe, which.best, which.run.folder)
