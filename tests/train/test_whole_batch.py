"""Losses that look at their whole batch: the same gradient in microbatches and on many devices, or one line that refuses."""
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train_toy import config

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import process
from diffusion_jax.models.gan import Discriminator
from diffusion_jax.models.vae import KL, VQ
from diffusion_jax.nn.embed import patchify, unpatchify
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.tasks.autoencoder_loss import Losses
from diffusion_jax.tasks.clip import Contrastive
from diffusion_jax.tasks.dvae import Anneal, DiscreteVAE
from diffusion_jax.train import shard
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.powersgd import Compressed
from diffusion_jax.train.state import create
from diffusion_jax.train.step import check_split, gradients, joined, make_step, split

KEY, RNG = jax.random.key(0), np.random.RandomState(0)
BATCH = {"image": np.float32(RNG.rand(16, 4, 4, 1) * 2 - 1), "tokens": np.int32(RNG.randint(0, 9, (16, 3)))}
SHARDED = ((".*", "fsdp"),)


class Towers(nn.Module):
    """As models/clip.py:CLIP."""

    @nn.compact
    def __call__(self, images, tokens, label=None):
        scale = self.param("logit_scale", nn.initializers.constant(2.0), ())
        x = images.reshape(len(images), -1)
        x = x if label is None else x * (1 + label[:, None] / 10)
        return nn.Dense(6, name="image")(jnp.tanh(x)), nn.Embed(9, 6, name="text")(tokens).mean(1), scale


class Codes(nn.Module):
    """As models/dvae_codebook.py:CodebookVAE."""

    codes: int = 8
    factor: int = 2
    mapped = False

    def setup(self):
        self.first, self.last = nn.Dense(8), nn.Dense(4)

    def __call__(self, x):
        return self.decode(nn.softmax(self.encode(x)))

    def encode(self, x):
        return self.first(patchify(x, 2).reshape(len(x), 2, 2, 4))

    def decode(self, z):
        return unpatchify(self.last(z).reshape(len(z), 4, 4), 4, 4, 2)

    def pixels(self, out):
        return out


def clip(steps=0):
    return Contrastive(Towers(), (4, 4, 1), process=process.DDPM("squaredcos", steps) if steps else None)


def dvae(**options):
    schedules = dict(temperature=Anneal(1.0, 0.5, 4), beta=Anneal(0.5, 2.0, 4))
    return DiscreteVAE(Codes(), (4, 4, 1), reconstruction="l2", **schedules, **options)


def autoencoder(model=VQ, **options):
    model = model(channels=1, latent=2, width=4, mults=(1, 2), depth=1, groups=2, mid_attention=False)
    return Autoencoder(model, (4, 4, 1), Losses(Discriminator(width=4, depth=1), **options))


TASKS = {"clip": clip(), "clip of noised pictures": clip(10), "dvae, balance": dvae(balance=0.5),
         "dvae, straight through": dvae(balance=2.0, straight_through=True)}
UNDIVIDED = {"vq": autoencoder(), "kl": autoencoder(KL), "kl without a discriminator yet": autoencoder(KL, disc_start=10**9)}


def one():
    return shard.make_mesh(devices=jax.devices()[:1])


def gradient(task, mesh, accumulate, rules=shard.REPLICATE, gather="step"):
    """(loss, metrics, gradient, memory) of fresh parameters and the third update."""
    params, memory = jax.jit(task.init)(KEY, BATCH), jax.tree.map(lambda x: x + 2, dict(task.memory()))
    shardings = shard.shardings(mesh, params, rules)

    def run(params, batch):
        return gradients(task, params, None, batch, KEY, mesh, shardings, accumulate, memory, gather=gather)

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.device_get(jax.jit(run)(jax.device_put(params, shardings), jax.device_put(BATCH, shard.batch_sharding(mesh))))


def by_hand(task, accumulate):
    """The same, differentiated through the outputs of all microbatches at once."""
    params, memory = jax.jit(task.init)(KEY, BATCH), jax.tree.map(lambda x: x + 2, dict(task.memory()))
    known = {"memory": memory} if memory else None

    def loss(params):
        parts = [task.outputs(params, known, {k: x[a::accumulate] for k, x in BATCH.items()}, jax.random.fold_in(KEY, a), True)
                 for a in range(accumulate)]
        return task.overall(params, known, jax.tree.map(lambda *x: jnp.concatenate(x), *parts), True)

    return jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(params))


def assert_close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6 * max(np.abs(b).max(), 1)), got, want)


@pytest.mark.parametrize("name", [
    name if name == "clip" else pytest.param(name, marks=pytest.mark.slow) for name in TASKS])
def test_microbatches_have_the_gradient_of_the_whole_batch(name):
    loss, metrics, grads, memory = gradient(TASKS[name], one(), 4)
    (want, wanted), wanted_grads = by_hand(TASKS[name], 4)
    later = wanted.pop("memory", {})
    assert_close((loss, metrics, grads, dict(memory)), (want, wanted, wanted_grads, later))


def test_four_microbatches_are_one_batch_where_nothing_is_drawn():
    whole, parts = (gradient(clip(), one(), accumulate) for accumulate in (1, 4))
    assert_close(parts, whole)
    assert whole[0] > np.log(16) - 1                                           # 16 negatives, not 4


@pytest.mark.parametrize("name", ["clip", pytest.param("dvae, balance", marks=pytest.mark.slow)])
@pytest.mark.parametrize("accumulate,gather", [
    (2, "use"), *(pytest.param(*row, marks=pytest.mark.slow) for row in ((1, "step"), (2, "step")))])
def test_eight_devices_see_the_batch_of_all(name, accumulate, gather):
    want = gradient(TASKS[name], one(), accumulate)
    assert_close(gradient(TASKS[name], shard.make_mesh(data=4, fsdp=2), accumulate, SHARDED, gather), want)


def begun(task, accumulate):
    """(step, state) of a task on one device."""
    make = functools.partial(create, task, optax.sgd(0.1), {}, KEY, BATCH)
    shardings = shard.shardings(one(), jax.eval_shape(make))
    return make_step(task, optax.sgd(0.1), {}, one(), shardings, accumulate), jax.jit(make, out_shardings=shardings)()


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_memory_counts_updates_and_goes_on_where_it_was(accumulate, tmp_path):
    """After two updates tau and beta are those of the second, however many microbatches there were, in another process too."""
    task = dvae()
    step, state = begun(task, accumulate)
    state, metrics = step(state, None, BATCH)
    np.testing.assert_allclose(metrics["temperature"], task.temperature(0), rtol=1e-6)
    with Checkpoints(tmp_path, config(), every=1) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        resumed = checkpoints.restore_latest(shapes)
    for begin in (state, resumed):
        later, metrics = step(begin, None, BATCH)
        assert later.memory["count"] == 2
        np.testing.assert_allclose(metrics["temperature"], task.temperature(1), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model", [VQ, KL])
def test_a_discriminator_on_eight_devices_sees_the_batch_of_all(model):
    """The adaptive weight and the norms, while the discriminator acts; what is logged of them, and the gradient."""
    task = autoencoder(model, disc_start=1)
    want = gradient(task, one(), 1)
    assert want[1]["disc_factor"] == 1 and want[1]["d_weight"] > 0
    assert_close(gradient(task, shard.make_mesh(data=8), 1), want)


@pytest.mark.parametrize("name", UNDIVIDED)
def test_what_cannot_be_split_is_refused(name):
    task = UNDIVIDED[name]
    with pytest.raises(ConfigError, match="accumulate 2 splits the batch, but the adaptive weight.*: set accumulate=1"):
        make_step(task, optax.sgd(0.1), {}, one(), None, accumulate=2)
    make_step(task, optax.sgd(0.1), {}, one(), None)
    check_split(dataclasses.replace(task, losses=None), 2)                     # nothing to train: nothing to refuse


@pytest.mark.parametrize("task", [*TASKS.values(), *UNDIVIDED.values()], ids=[*TASKS, *UNDIVIDED])
def test_no_shard_is_left_to_itself(task):
    method = Compressed(optax.sgd(0.1), 2)
    with pytest.raises(ConfigError, match="loss of .* looks at all of it: leave powersgd out, or set mesh.data=1"):
        make_step(task, method, {}, shard.make_mesh(data=2, devices=jax.devices()[:2]), None)
    make_step(task, method, {}, one(), None)


@dataclasses.dataclass(frozen=True)
class Overflows:
    """The gradient of w is that of each example, whatever that is."""

    def init(self, key, batch):
        return {"w": jnp.zeros(4)}

    def memory(self):
        return {}

    def loss(self, params, frozen, batch, key, train):
        return jnp.mean(batch["g"] @ params["w"]), {}


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("scale", [100.0, 16384.0, 0.5])
def test_what_overflows_under_a_scale_is_left_out_of_the_update(accumulate, scale):
    """As in EDM2's published training: NaN and both infinities become 0, once, after the whole batch."""
    g = np.ones((8, 4), np.float32)
    g[3] = [np.nan, np.inf, -np.inf, 1]
    run = functools.partial(gradients, Overflows(), {"w": jnp.zeros(4)}, None, {"g": g}, KEY, None, None, accumulate)
    np.testing.assert_allclose(run(loss_scale=scale)[2]["w"], [0, 0, 0, 1], rtol=1e-6)
    plain = np.asarray(run()[2]["w"])                                          # the loop stops at these
    assert not np.isfinite(plain[:3]).any() and plain[3] == 1


def test_outputs_come_back_in_the_order_of_the_batch():
    x = np.arange(24.0).reshape(12, 2)
    for mesh in (None, shard.make_mesh(data=2, devices=jax.devices()[:2])):
        np.testing.assert_array_equal(jax.jit(lambda x, mesh=mesh: joined(split(x, 3, mesh), mesh))(x), x)
