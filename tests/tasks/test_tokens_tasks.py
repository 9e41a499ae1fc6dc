"""The autoregressive task: its first stages, what is logged, dropped captions, what it refuses."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dalle import DALLE
from diffusion_jax.models.dvae import DVAE
from diffusion_jax.models.vae import KL, VQ
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.tasks.autoregressive import Autoregressive, nll
from diffusion_jax.tasks.dvae import Anneal, DiscreteVAE

KEY = jax.random.key(0)
NET = DVAE(codes=8, width=8, mults=(1, 2), depth=1, init_width=4, channels=1)
FIRST = DiscreteVAE(NET, (8, 8, 1), temperature=Anneal(1.0, 0.5, 10), beta=Anneal(0.0, 2.0, 4))
DALLE_NET = DALLE(text_codes=10, image_codes=8, text_length=3, grid=4, width=16, depth=2, heads=2, kernel=3, start=0)
TASK = Autoregressive(DALLE_NET, FIRST, drop=0.5)
BATCH = {"image": jax.random.uniform(KEY, (4, 8, 8, 1), minval=-1), "tokens": jnp.array([[1, 2, 0]] * 4)}


@pytest.fixture(scope="module")
def first():
    return jax.jit(FIRST.init)(KEY, BATCH)


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
