"""The discrete VAE and the autoregressive task: schedules, what is logged, dropped captions, what they refuse."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dalle import DALLE
from diffusion_jax.models.dvae import DVAE
from diffusion_jax.models.dvae_codebook import CodebookVAE
from diffusion_jax.models.vae import KL, VQ
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.tasks.autoregressive import Autoregressive, nll
from diffusion_jax.tasks.dvae import Anneal, DiscreteVAE, usage

KEY = jax.random.key(0)
NET = DVAE(codes=8, width=8, mults=(1, 2), depth=1, init_width=4, channels=1)
FIRST = DiscreteVAE(NET, (8, 8, 1), temperature=Anneal(1.0, 0.5, 10), beta=Anneal(0.0, 2.0, 4))
DALLE_NET = DALLE(text_codes=10, image_codes=8, text_length=3, grid=4, width=16, depth=2, heads=2, kernel=3, start=0)
TASK = Autoregressive(DALLE_NET, FIRST, drop=0.5)
BATCH = {"image": jax.random.uniform(KEY, (4, 8, 8, 1), minval=-1), "tokens": jnp.array([[1, 2, 0]] * 4)}


@pytest.fixture(scope="module")
def first():
    return jax.jit(FIRST.init)(KEY, BATCH)


def test_annealing_follows_half_a_cosine():
    anneal = Anneal(1.0, 0.5, 10)
    np.testing.assert_allclose([anneal(c) for c in (0, 5, 10, 99)], [1, 0.75, 0.5, 0.5], atol=1e-6)
    with pytest.raises(ConfigError, match="at least one step"):
        Anneal(0, 1, 0)


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
    codes = FIRST.encode(first, BATCH["image"])
    assert codes.shape == (4, 16) and codes.dtype == jnp.int32
    z = jax.nn.one_hot(codes.reshape(4, 4, 4), 8)
    want = NET.pixels(NET.apply({"params": first["model"]}, z, method="decode"))
    np.testing.assert_array_equal(FIRST.decode(first, codes), want)


@pytest.mark.slow
def test_the_transformer_trains_on_its_first_stages_codes(first):
    params = jax.jit(TASK.init)(KEY, BATCH)
    frozen, codes = {"first_stage": first}, FIRST.encode(first, BATCH["image"])
    evaluate = jax.jit(lambda batch: TASK.loss(params, frozen, batch, KEY, False))
    (loss, bits), (same, _) = evaluate(BATCH), evaluate({"tokens": BATCH["tokens"], "codes": codes})
    np.testing.assert_allclose(loss, same, rtol=1e-6)
    np.testing.assert_allclose(loss, (bits["text_bits"] + 7 * bits["image_bits"]) / 8 * np.log(2), rtol=1e-5)
    terms = jax.jit(lambda tokens: TASK.terms(params, tokens, codes))
    trained, _ = jax.jit(lambda: TASK.loss(params, frozen, BATCH, KEY, True))()
    assert {round(float(trained), 5)} != {round(float(terms(BATCH["tokens"])["loss"].mean()), 5)}        # captions were dropped
    with pytest.raises(ConfigError, match="first stage"):
        TASK.loss(params, None, BATCH, KEY, False)


@pytest.mark.slow
def test_a_vq_autoencoder_is_a_first_stage_too():
    vq = Autoencoder(VQ(channels=1, width=8, mults=(1, 2), depth=1, codes=8, mid_attention=False, groups=4), (8, 8, 1))
    task = dataclasses.replace(TASK, first_stage=vq)
    assert task.coder.codes == 8 and task.coder.grid == (4, 4)
    params = jax.jit(vq.init)(KEY, BATCH)
    codes = jax.jit(task.coder.encode)(params, BATCH["image"])
    assert codes.shape == (4, 16) and codes.dtype == jnp.int32
    want = jax.jit(vq.decode)(params, vq.encode(params, BATCH["image"]))
    np.testing.assert_allclose(jax.jit(task.coder.decode)(params, codes), want, atol=1e-5)
    with pytest.raises(ConfigError, match="no codes"):
        dataclasses.replace(TASK, first_stage=dataclasses.replace(vq, model=KL()))
    with pytest.raises(ConfigError, match="makes no codes"):
        dataclasses.replace(TASK, first_stage=TASK)


def test_padding_tokens_are_what_is_predicted():
    assert TASK.padded(jnp.array([[1, 0, 0]])).tolist() == [[1, 8, 9]]
    logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))
    np.testing.assert_allclose(nll(logits, jnp.array([[0, 1]])), -(np.log(0.5) + np.log(0.75)) / 2, rtol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="change one"):
        dataclasses.replace(TASK, model=dataclasses.replace(DALLE_NET, image_codes=9))
    with pytest.raises(ConfigError, match="tokenizer"):
        TASK.init(KEY, {"image": BATCH["image"]})
    with pytest.raises(ConfigError, match="mu, ln b"):
        DiscreteVAE(CodebookVAE(), (8, 8, 3))
    with pytest.raises(ConfigError, match="known: l1, l2"):
        DiscreteVAE(NET, (8, 8, 1), "l3")
