"""Augmentation as a condition: what training sees, what all others see, and that none of it shows in what is made."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.core import FrozenDict

from diffusion_jax.build import ConfigError, build
from diffusion_jax.diffusion import scales
from diffusion_jax.diffusion.process import DDPM
from diffusion_jax.models.augment import Augmented
from diffusion_jax.models.clip import TextTower
from diffusion_jax.models.cond import Joint, Label, LowRes, Nothing, OneHot
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.edm2 import EDM2
from diffusion_jax.models.text_cond import TowerText
from diffusion_jax.models.unet import UNet
from diffusion_jax.models.vae import KL
from diffusion_jax.nn import warp
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.types import Augments

IMAGE = jax.random.uniform(jax.random.key(9), (6, 8, 8, 1), minval=-1, maxval=1)
RAW = {"image": IMAGE, "label": jnp.arange(6) % 3}
LABEL = Augmented(Label(3, 4), width=4, rate=0.5)


def test_it_is_the_conditioner_that_it_stands_around():
    small = Augmented(Joint((Label(3, 4), LowRes(2))), width=4)
    assert (small.keys, small.derived, small.droppable, small.num_classes) == (("label", "low_res"), ("low_res",), ("label",), 3)
    assert isinstance(small, Augments) and not isinstance(small.cond, Augments) and not isinstance(LowRes(2, 0.5, 8), Augments)
    np.testing.assert_array_equal(LABEL.null(RAW)["label"], 3)
    assert LABEL.prepare(RAW, jax.random.key(0)) is RAW
    with pytest.raises(ConfigError, match="label 5 is outside"):
        LABEL.check({"label": np.array([5])})
    spec = dict(name="diffusion_jax.models.augment:Augmented", width=4,
                cond=dict(name="diffusion_jax.models.cond:Label", num_classes=3, width=4))
    assert build(spec) == Augmented(Label(3, 4), width=4)


def test_training_sees_warped_pictures_and_how():
    @jax.jit
    def both(key):
        a = warp.draws(key, 6, 0.5, 0.5)
        return LABEL.augmented(RAW, key), warp.vector(a), jnp.clip(warp.warped(IMAGE, a), -1, 1)

    raw, how, image = both(jax.random.key(0))
    np.testing.assert_array_equal(raw["augment"], how)
    np.testing.assert_array_equal(raw["image"], image)
    assert (raw["label"] == RAW["label"]).all() and (raw["image"] != IMAGE).any()


@pytest.mark.parametrize("normalised", [False, True])
def test_without_numbers_it_gives_what_the_conditioner_gives(normalised):
    cond = Augmented(Label(3, 4), width=4, normalised=normalised)
    variables = jax.jit(cond.init)(jax.random.key(0), RAW)
    table = variables["params"]["cond"]["table"]
    numbers = jnp.eye(9)[:6]
    np.testing.assert_array_equal(cond.apply(variables, RAW)["vec"], table[RAW["label"]])
    vec = cond.apply(variables, RAW | {"augment": numbers})["vec"]
    # A new layer changes nothing of a network that was there before, but where that has to keep its size.
    assert bool((vec != table[RAW["label"]]).any()) == normalised
    weight = jnp.ones((9, 4))
    trained = {"params": {"cond": {"table": table}, "emb": {"weight" if normalised else "kernel": weight}}}
    how = cond.apply(trained, RAW | {"augment": numbers})["vec"] - table[RAW["label"]]
    np.testing.assert_allclose(how, jnp.ones((6, 4)), rtol=1e-3)
    np.testing.assert_array_equal(cond.apply(trained, RAW)["vec"], table[RAW["label"]])


def test_an_unconditional_network_is_told_zeros():
    cond = Augmented(Nothing(), width=4)
    variables = cond.init(jax.random.key(0), {})
    np.testing.assert_array_equal(cond.apply(variables, {})["vec"], jnp.zeros((1, 4)))
    assert cond.keys == () and cond.num_classes == 0 and variables["params"].keys() == {"emb"}


@pytest.mark.parametrize(("make", "says"), [
    (lambda: Augmented(Nothing(), 4, rate=0, mirror=0), "augments nothing"),
    (lambda: Augmented(LABEL, 4), "augmented once"),
    (lambda: Joint((LABEL, LowRes(2))), "put this Joint into it"),
    (lambda: Augmented(Label(3, 4), 8).init(jax.random.key(0), RAW), "has width 8, its conditioner 4"),
])
def test_what_has_no_meaning_is_refused(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


NETWORKS = {
    "dit": (DiT(width=8, depth=1, heads=2, patch=4, channels=1, learn_sigma=False), Label(3, 8), 8),
    "dit, no label": (DiT(width=8, depth=1, heads=2, patch=4, channels=1, learn_sigma=False), Nothing(), 8),
    "unet": (UNet(width=8, mults=(1,), depth=1, attend=(), channels=1, learn_sigma=False, groups=4), Nothing(), 32),
    "edm2": (EDM2(ladder="G", width=8, mults=(1,), depth=1, head_channels=8, channels=1, attend=()), OneHot(3, 8), 8),
}


@pytest.mark.parametrize("name", [
    name if name in ("dit", "edm2") else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS])
def test_networks_take_it(name):
    model, cond, width = NETWORKS[name]
    task = task_of(model, Augmented(cond, width, normalised=name == "edm2"))
    params = jax.eval_shape(task.init, jax.random.key(0), RAW)
    loss, _ = jax.eval_shape(lambda p: task.loss(p, {}, RAW, jax.random.key(0), True), params)
    assert loss.shape == ()
    raw = {key: RAW[key] for key in task.cond.keys}
    made = jax.eval_shape(lambda p: task.denoiser(p)(IMAGE, jnp.float32(1), task.embed(p, raw), jax.random.key(0)), params)
    assert made.x0.shape == IMAGE.shape


class Recall(nn.Module):
    """A network that looks at its condition only."""

    @nn.compact
    def __call__(self, x, noise, cond):
        bias = self.param("bias", nn.initializers.zeros, x.shape[1:])
        return bias[None] + nn.Dense(bias.size, use_bias=False)(cond["vec"]).reshape(-1, *bias.shape) + 0 * x


def task_of(model, cond, **changes):
    return Diffusion(model=model, cond=cond, process=DDPM(), scale=scales.X0(), shape=(8, 8, 1), **changes)


@pytest.mark.slow
def test_nothing_leaks():
    """Trained on one picture, half of the time mirrored, a network makes that picture; one that is not told, the mean of both."""
    picture = IMAGE[:1]
    cond = Augmented(Nothing(), 4, rate=0, mirror=0.5)
    task = task_of(Recall(), cond)
    raw = {"image": jnp.repeat(picture, 32, axis=0)}
    optimizer = optax.adam(3e-2)

    def loss(both, key):
        blind = {"image": cond.augmented(raw, jax.random.fold_in(key, 5))["image"]}
        return task.loss(both[0], {}, raw, key, True)[0] + task.loss(both[1], {}, blind, key, False)[0]

    def step(carry, key):
        both, state = carry
        updates, state = optimizer.update(jax.grad(loss)(both, key), state)
        return (optax.apply_updates(both, updates), state), None

    both = (jax.jit(task.init)(jax.random.key(0), raw),) * 2
    (both, _), _ = jax.lax.scan(step, (both, optimizer.init(both)), jax.random.split(jax.random.key(1), 400))
    for params, made, tolerance in zip(both, (picture, (picture + picture[:, :, ::-1]) / 2), (0.02, 0.2), strict=True):
        x0 = task.denoiser(params)(jnp.zeros((1, 8, 8, 1)), jnp.float32(500), task.embed(params, {}), jax.random.key(0)).x0
        np.testing.assert_allclose(x0, made, atol=tolerance)


# In the task ----------------------------------------------------------------------------------------------------------------


def test_what_is_measured_is_not_augmented():
    """The loss without training is that of the conditioner inside."""
    task, plain = task_of(Recall(), LABEL), task_of(Recall(), LABEL.cond)
    params = jax.jit(task.init)(jax.random.key(0), RAW)
    params["cond"]["emb"]["kernel"] = jnp.ones((9, 4))
    without = params | {"cond": params["cond"]["cond"]}
    key = jax.random.key(1)
    losses = jax.jit(lambda: [t.loss(p, {}, RAW, key, False)[0] for t, p in ((task, params), (plain, without))])
    assert len(set(map(float, losses()))) == 1


def test_a_dropped_label_leaves_the_augmentation():
    task = task_of(Recall(), LABEL, drop=FrozenDict(label=1.0))
    raw = task.dropped(RAW | {"augment": jnp.ones((6, 9))}, {"label": jnp.zeros(6)})
    np.testing.assert_array_equal(raw["label"], 3)
    np.testing.assert_array_equal(raw["augment"], 1)


@pytest.mark.slow
def test_latents_are_those_of_the_augmented_picture(monkeypatch):
    """A first stage encodes what was augmented; latents on disk are refused."""
    vae = Autoencoder(KL(channels=1, latent=2, width=8, mults=(1, 2), depth=1, groups=4), (8, 8, 1))
    task = Diffusion(model=Recall(), cond=Augmented(Nothing(), 4, rate=1.0), process=DDPM(), scale=scales.X0(), shape=(4, 4, 2),
                     first_stage=vae)
    seen = []
    monkeypatch.setattr(Autoencoder, "prepare", lambda self, params, raw, key=None: seen.append(raw) or {
        **raw, "image": jnp.zeros((6, 4, 4, 2))})
    params = {"model": {"bias": jnp.zeros((4, 4, 2)), "Dense_0": {"kernel": jnp.zeros((4, 32))}},
              "cond": {"emb": {"kernel": jnp.zeros((9, 4))}}}
    monkeypatch.setattr(warp, "warped", lambda images, a: -images)
    task.loss(params, {"first_stage": {}}, {"image": IMAGE}, jax.random.key(0), True)
    task.loss(params, {"first_stage": {}}, {"image": IMAGE}, jax.random.key(0), False)
    assert seen[0]["augment"].shape == (6, 9) and (seen[0]["image"] == -IMAGE).all()
    assert "augment" not in seen[1] and seen[1]["image"] is IMAGE
    with pytest.raises(ConfigError, match="the data are latents, which cannot be augmented"):
        task.blank({"image": jnp.zeros((6, 4, 4, 2))})


def test_what_makes_no_pictures_is_not_augmented():
    with pytest.raises(ConfigError, match="makes no pictures"):
        Diffusion(model=Recall(), cond=LABEL, process=DDPM(), scale=scales.X0(), shape=(8,))


def test_a_condition_of_tokens_alone_has_a_vec_for_each_text():
    """Guidance concatenates the condition and its null along the batch."""
    tower = TextTower(features=None, vocab=5, context=3, width=8, layers=1, heads=2)
    cond = Augmented(TowerText(tower, empty=(0,), context=3, frozen=False), width=4)
    raw = {"tokens": jnp.zeros((2, 3), jnp.int32)}
    made = jax.eval_shape(lambda: cond.init_with_output(jax.random.key(0), raw)[0])
    assert made["vec"].shape == (2, 4) and made["seq"].shape == (2, 3, 8)
