"""The discrete VAE task: schedules, relaxations, divergences in closed form, what is logged and what is refused."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dvae import DVAE
from diffusion_jax.models.dvae_codebook import CodebookVAE
from diffusion_jax.tasks.autoencoder import Perceptual
from diffusion_jax.tasks.dvae import Anneal, DiscreteVAE, smooth_l1, usage

KEY = jax.random.key(0)
NET = DVAE(codes=8, width=8, mults=(1, 2), depth=1, init_width=4, channels=1)
FIRST = DiscreteVAE(NET, (8, 8, 1), temperature=Anneal(1.0, 0.5, 10), beta=Anneal(0.0, 2.0, 4))
BATCH = {"image": jax.random.uniform(KEY, (4, 8, 8, 1), minval=-1)}


@pytest.fixture(scope="module")
def first():
    return jax.jit(FIRST.init)(KEY, BATCH)


def test_annealing_follows_half_a_cosine():
    anneal = Anneal(1.0, 0.5, 10)
    np.testing.assert_allclose([anneal(c) for c in (0, 5, 10, 99)], [1, 0.75, 0.5, 0.5], atol=1e-6)
    with pytest.raises(ConfigError, match="at least one step"):
        Anneal(0, 1, 0)


@pytest.mark.slow
def test_a_discrete_vae_counts_its_batches_and_logs_its_codebook(first):
    run = jax.jit(lambda memory: FIRST.loss(first, {"memory": memory}, BATCH, KEY, True))
    (loss, logged), (later, logged_later) = run(FIRST.memory()), run({"count": jnp.float32(10)})
    assert logged["memory"]["count"] == 1 and logged_later["memory"]["count"] == 11
    assert logged["temperature"] == 1 and logged_later["temperature"] == 0.5
    np.testing.assert_allclose(loss, logged["reconstruction"], rtol=1e-6)                    # beta is still 0
    np.testing.assert_allclose(later, logged_later["reconstruction"] + 2 * logged_later["kl"] * 16 / 64, rtol=1e-5)
    assert 0 < logged["usage"] <= 1 <= logged["perplexity"] <= 8


def test_pixels_are_spread_over_the_width_of_their_gray_value():
    task = dataclasses.replace(FIRST, levels=17)
    x = jnp.broadcast_to(jnp.linspace(-1, 1, 17)[:, None, None, None], (17, 64, 64, 1))
    spread = np.sort(np.asarray(task.spread(x, KEY)).ravel())
    assert -1 - 1 / 16 <= spread[0] < -1.06 and 1.06 < spread[-1] <= 1 + 1 / 16
    np.testing.assert_allclose(spread, np.linspace(-17 / 16, 17 / 16, spread.size), atol=5e-3)          # evenly, without gaps
    with pytest.raises(ConfigError, match="6 at least"):
        dataclasses.replace(FIRST, levels=5)


def test_usage_of_a_codebook():
    logits = jax.nn.one_hot(jnp.array([0, 0, 1, 1, 2, 2]), 6)
    np.testing.assert_allclose(list(usage(logits).values()), [0.5, 3], rtol=1e-6)


def test_straight_through_sees_codes_and_keeps_the_gradient_of_the_relaxation():
    task, logits = dataclasses.replace(FIRST, straight_through=True), jax.random.normal(KEY, (1, 2, 2, 8))
    gumbel = jax.random.gumbel(jax.random.key(1), logits.shape)
    z = task.relaxed(logits, gumbel, 0.7)
    np.testing.assert_allclose(z.max(-1), 1, atol=1e-6)
    weights = jax.random.normal(jax.random.key(2), logits.shape)
    hard, soft = (jax.grad(lambda x, t=t: jnp.sum(weights * t.relaxed(x, gumbel, 0.7)))(logits) for t in (task, FIRST))
    np.testing.assert_allclose(hard, soft, atol=1e-6)


def test_codes_survive_the_way_through_flat_tokens(first):
    codes = jax.jit(FIRST.encode)(first, BATCH["image"])
    assert codes.shape == (4, 16) and codes.dtype == jnp.int32
    z = jax.nn.one_hot(codes.reshape(4, 4, 4), 8)
    want = jax.jit(lambda z: NET.pixels(NET.apply({"params": first["model"]}, z, method="decode")))(z)
    np.testing.assert_array_equal(jax.jit(FIRST.decode)(first, codes), want)


@dataclasses.dataclass(frozen=True)
class Still:
    """A network whose decoder puts out half gray whatever the codes."""

    codes: int = 5
    mapped: bool = False
    factor: int = 2

    def apply(self, variables, z, method):
        return jnp.full((2, 4, 6, 1), 0.5)

    def pixels(self, out):
        return out


def test_the_loss_is_its_parts_in_closed_form():
    rng = np.random.default_rng(0)
    x, logits = rng.uniform(-1, 1, (2, 4, 6, 1)), 3 * rng.normal(size=(2, 2, 3, 5))
    task = DiscreteVAE(Still(), (4, 6, 1), "l2", balance=0.7)
    terms = jax.jit(lambda x, logits: task.terms({"model": {}}, x, logits, None, 1.5))(x, logits)
    q = softmax(logits, axis=-1)
    kl = np.log(5) - np.mean(entropy(q, axis=-1))
    uneven = np.log(5) - entropy(q.mean((0, 1, 2)))
    np.testing.assert_allclose([terms["reconstruction"], terms["kl"]], [np.mean((x - 0.5) ** 2), kl], rtol=1e-5)
    np.testing.assert_allclose(terms["loss"], np.mean((x - 0.5) ** 2) + 1.5 * kl * 6 / 24 + 0.7 * uneven, rtol=1e-5)
    np.testing.assert_allclose(smooth_l1(jnp.array([-0.5, 1.0, 3.0])), [0.125, 0.5, 2.5])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="mu, ln b"):
        DiscreteVAE(CodebookVAE(), (8, 8, 3))
    with pytest.raises(ConfigError, match="known: l1, l2"):
        DiscreteVAE(NET, (8, 8, 1), "l3")


@dataclasses.dataclass(frozen=True)
class Gap:
    """In the place of LPIPS: twice the mean difference of two images of 8 pixels or more."""

    smallest: int = 8

    def takes(self, shape):
        return shape[-1] in (1, 3) and min(shape[:2]) >= self.smallest

    def apply(self, variables, x, y):
        return variables["params"]["w"] * jnp.mean(jnp.abs(x - y), axis=(1, 2, 3))


FROZEN = {"first_stage": {"model": {"w": 2.0}}}


@pytest.mark.slow
def test_lpips_is_of_the_images_as_they_are_and_of_what_the_decoder_means(first):
    task = dataclasses.replace(FIRST, levels=17, first_stage=Perceptual(Gap()), perceptual_weight=0.3)
    plain = dataclasses.replace(FIRST, levels=17)
    loss, logged = jax.jit(lambda: task.loss(first, FROZEN, BATCH, KEY, False))()
    want, others = jax.jit(lambda: plain.loss(first, {}, BATCH, KEY, False))()
    pictures = jax.jit(lambda: FIRST.decode(first, FIRST.encode(first, BATCH["image"])))()
    distance = 2 * np.mean(np.abs(np.float64(BATCH["image"]) - pictures))
    np.testing.assert_allclose(logged["lpips"], distance, rtol=1e-5)
    np.testing.assert_allclose(loss, want + 0.3 * distance, rtol=1e-5)
    assert logged.keys() == others.keys() | {"lpips"}
    moved = jax.jit(jax.grad(lambda p: task.loss(p, FROZEN, BATCH, KEY, True)[0]))(first)
    still = jax.jit(jax.grad(lambda p: plain.loss(p, {}, BATCH, KEY, True)[0]))(first)
    assert all(not np.allclose(a, b) for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(still), strict=True))


@pytest.mark.parametrize(("changes", "says"), [
    (dict(perceptual_weight=0.0), "perceptual_weight is 0, so LPIPS would do nothing"),
    (dict(first_stage=Perceptual(Gap(16))), "LPIPS sees images of 1 or 3 channels and 16 pixels or more, not 8x8x1"),
    (dict(first_stage=Perceptual()), "16 pixels or more, not 8x8x1: leave first_stage out"),
])
def test_a_distance_that_does_nothing_is_refused(changes, says):
    task = dataclasses.replace(FIRST, **dict(first_stage=Perceptual(Gap()), perceptual_weight=0.3) | changes)
    with pytest.raises(ConfigError, match=says):
        task.init(KEY, BATCH)


def test_a_distance_needs_its_weights(first):
    task = dataclasses.replace(FIRST, first_stage=Perceptual(Gap()), perceptual_weight=0.3)
    with pytest.raises(ConfigError, match="LPIPS needs its weights: config.first_stage=lpips=vgg"):
        task.loss(first, {}, BATCH, KEY, True)
