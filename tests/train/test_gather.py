"""Weights gathered where they are used: the step of weights gathered at once, and only a layer of them at a time."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.diffusion.process import DDPM
from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.clip import CLIP, TextTower
from diffusion_jax.models.clip_resnet import ResNet
from diffusion_jax.models.dalle import DALLE
from diffusion_jax.models.dvae import DVAE
from diffusion_jax.models.gan import Discriminator
from diffusion_jax.models.vae import KL, VQ
from diffusion_jax.nn.conv import Conv
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.tasks.autoencoder_loss import Losses
from diffusion_jax.tasks.autoregressive import Autoregressive
from diffusion_jax.tasks.classifier import NoisyClassifier
from diffusion_jax.tasks.clip import Contrastive
from diffusion_jax.tasks.dvae import DiscreteVAE
from diffusion_jax.train import shard
from diffusion_jax.train.gather import at_use, split_like
from diffusion_jax.train.state import create, task_of
from diffusion_jax.train.step import gradients, make_step

WIDTH, DEPTH = 32, 3
CONFIG = dict(
    model=dict(name="diffusion_jax.models.dit:DiT", patch=2, width=WIDTH, depth=DEPTH, heads=2, channels=1, learn_sigma=False,
               scan=True, remat="dots"),
    task=dict(name="diffusion_jax.tasks.diffusion:Diffusion", shape=(8, 8, 1),
              cond=dict(name="diffusion_jax.models.cond:Label", num_classes=10, width=WIDTH),
              process=dict(name="diffusion_jax.diffusion.process:Flow"),
              scale=dict(name="diffusion_jax.diffusion.scales:Velocity")),
)
RULES = (("(qkv|fc1)/kernel$", ("fsdp", "tensor")), (".*", "fsdp"))


def step_of(gather, mesh):
    task, optimizer = task_of(CONFIG), build(dict(name="diffusion_jax.train.optim:optimizer", method="adam", lr=1e-3))
    rng = np.random.default_rng(0)
    batch = {"image": rng.normal(size=(16, 8, 8, 1)).astype(np.float32), "label": np.arange(16, dtype=np.int32) % 10}
    make = functools.partial(create, task, optimizer, {})
    shapes = jax.eval_shape(make, jax.random.key(0), batch)
    shardings = shard.shardings(mesh, shapes, RULES)
    state = jax.jit(make, out_shardings=shardings)(jax.random.key(0), batch)
    batch = jax.device_put(batch, shard.batch_sharding(mesh))
    return make_step(task, optimizer, {}, mesh, shardings, gather=gather), state, batch


@pytest.mark.slow
def test_the_same_step_in_less_memory():
    found = {}
    for gather in ("step", "use"):
        step, state, batch = step_of(gather, shard.make_mesh(data=2, fsdp=2, tensor=2))
        text = step.lower(state, None, batch).compile().as_text()
        found[gather] = (*step(state, None, batch), text)
    (state, metrics, whole), (other, others, layered) = found["step"], found["use"]
    for name in ("loss", "grad_norm", "update_norm"):
        np.testing.assert_allclose(metrics[name], others[name], rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), state.params, other.params)
    stacked = f"f32[{DEPTH},{WIDTH},{4 * WIDTH // 2}]"                                 # all layers of fc1, gathered over fsdp
    gathers = [[line for line in text.splitlines() if " all-gather" in line and stacked in line.split(" all-gather")[0]]
               for text in (whole, layered)]
    assert gathers[0] and not gathers[1]


class Convolutions(nn.Module):
    """Three of them."""

    @nn.compact
    def __call__(self, x):
        for i in range(3):
            x = nn.silu(Conv(32, name=f"conv_{i}")(x))
        return x


@pytest.mark.parametrize("gather", ["use", pytest.param("step", marks=pytest.mark.slow)])
def test_gradients_of_convolutions_leave_the_images_where_they_are(gather):
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 32)).astype(np.float32)
    params, mesh = Convolutions().init(jax.random.key(0), x)["params"], shard.make_mesh(data=2, fsdp=4)
    shardings = shard.shardings(mesh, params, ((".*", "fsdp"),))

    def loss(params, x):
        return jnp.square(Convolutions().apply({"params": at_use(params, shardings) if gather == "use" else params}, x)).mean()

    def split(params, x):
        if gather == "use":
            return jax.grad(loss)(params, x)
        whole = jax.lax.with_sharding_constraint(params, jax.tree.map(shard.gathered, shardings))
        return jax.tree.map(split_like, jax.grad(loss)(whole, x), shardings)

    given = jax.device_put(params, shardings), jax.device_put(x, shard.batch_sharding(mesh))
    program = jax.jit(split, out_shardings=shardings).lower(*given).compile()
    assert not [kind for kind in ("collective-permute", "all-to-all") if f" {kind}(" in program.as_text()]
    want = jax.grad(lambda params: jnp.square(Convolutions().apply({"params": params}, x)).mean())(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), program(*given), want)


def vae(model):
    model = model(channels=1, latent=4, width=8, mults=(1,), depth=1, groups=4, mid_attention=False)
    return Autoencoder(model, (8, 8, 1), Losses(Discriminator(width=8, depth=1)))


def classifier(pool):
    model = Classifier(width=8, mults=(1,), depth=1, attend=(1,), heads=2, groups=4, num_classes=8, pool=pool)
    return NoisyClassifier(model, DDPM(), (8, 8, 1))


OUTSIDE = {                   # tasks that look at parameters or at their shapes beside flax, which opens boxes by itself
    "vq": lambda: vae(VQ), "kl": lambda: vae(KL), "attention pool": lambda: classifier("attention"),
    "spatial pool": lambda: classifier("spatial_v2"),
    "clip": lambda: Contrastive(CLIP(ResNet(8, 32, 8, (1, 1, 1, 1)), TextTower(8, 16, 4, 8, 1, 2), (0.5,), (0.5,)), (32, 32, 1)),
    "dalle": lambda: Autoregressive(DALLE(16, 8, 4, 2, 8, 8, 2, scan=True, remat=True)),
    "dvae": lambda: DiscreteVAE(DVAE(codes=8, width=8, mults=(1, 2), depth=1, init_width=8, channels=1), (8, 8, 1)),
}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name == "dalle" else pytest.mark.slow) for name in OUTSIDE])
@pytest.mark.slow
def test_boxed_weights_are_opened_wherever_they_are_read(name):
    """Traced only: what reads a box as an array fails there."""
    task, mesh = OUTSIDE[name](), shard.make_mesh(data=2, fsdp=4)
    batch = {"image": jnp.zeros((8, *task.shape)), "label": jnp.zeros(8, int), "tokens": jnp.zeros((8, 4), int),
             "codes": jnp.zeros((8, 4), int)}
    optimizer = build(dict(name="diffusion_jax.train.optim:optimizer", method="adam", lr=1e-3))
    state = jax.eval_shape(functools.partial(create, task, optimizer, {}), jax.random.key(0), batch)
    step = make_step(task, optimizer, {}, mesh, shard.shardings(mesh, state, ((".*", "fsdp"),)), gather="use")
    after, _ = jax.eval_shape(step, state, None, batch)
    assert jax.tree.structure(after.params) == jax.tree.structure(state.params)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vq", "attention pool"])
def test_their_gradients_are_those_of_whole_weights(name):
    task, mesh, rng = OUTSIDE[name](), shard.make_mesh(data=2, fsdp=4), np.random.default_rng(0)
    batch = {"image": rng.normal(size=(8, *task.shape)).astype(np.float32), "label": np.arange(8)}
    params = jax.jit(task.init)(jax.random.key(0), batch)
    shardings = shard.shardings(mesh, params, ((".*", "fsdp"),))
    split, batch = jax.device_put(params, shardings), jax.device_put(batch, shard.batch_sharding(mesh))

    def run(gather):
        def own(params, batch):
            key, memory = jax.random.key(1), task.memory()
            return gradients(task, params, None, batch, key, mesh, shardings, memory=memory, gather=gather)

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.device_get(jax.jit(own)(split, batch))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(np.abs(b).max(), 1)),
                 run("use"), run("step"))


def test_other_words_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'step'"):
        make_step(None, None, {}, None, None, gather="steps")
