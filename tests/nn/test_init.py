"""How each system's layers start: every array of a fresh network against the closed form of its own recipe."""
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import gan
from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.clip import TextTower, ViT
from diffusion_jax.models.clip_resnet import ResNet
from diffusion_jax.models.cond import Label, OneHot
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.dvae import DVAE
from diffusion_jax.models.dvae_codebook import CodebookVAE
from diffusion_jax.models.edm2 import EDM2
from diffusion_jax.models.glide import Text
from diffusion_jax.models.prior import Prior
from diffusion_jax.models.text_cond import LabelToken
from diffusion_jax.models.unet import UNet
from diffusion_jax.models.vae import KL, VQ
from diffusion_jax.nn import init

KEY, X, NOISE, IDS = jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1), jnp.zeros((1, 4), int)
SMALL = dict(width=32, mults=(1,), depth=1, attend=(1,), heads=2, groups=8)
SEQ = {"seq": jnp.zeros((1, 4, 16))}


def uniform(bound):
    return "uniform", 0.0, bound / 3**0.5


def normal(std, mean=0.0):
    return "normal", mean, std


def fan_in(shape):
    return int(np.prod(shape[:-1]))


ZERO, ONE = normal(0.0), normal(0.0, 1.0)
TORCH = lambda shape: uniform(fan_in(shape) ** -0.5)  # noqa: E731  Kaiming uniform with a = sqrt 5: sqrt(6 / (1 + 5) fan_in)


def xavier(shape, parts=1):
    window = int(np.prod(shape[:-2]))
    return uniform((6 / (window * (shape[-2] + shape[-1] / parts))) ** 0.5)


def start(*rules, bias=None):
    """Rules (path, distribution of a shape) before those that all have: norms at 1 and 0, and biases by their kernel."""
    return (*((path, rule if callable(rule) else lambda shape, rule=rule: rule) for path, rule in rules),
            (r"norm[^/]*/scale$", lambda shape: ONE), (r"norm[^/]*/bias$", lambda shape: ZERO),
            (r"/bias$|^bias$", bias or (lambda kernel: uniform(fan_in(kernel) ** -0.5))))


LAST = (r"(conv2|proj|final_conv)/(kernel|bias)$", ZERO)
NO_BIAS = dict(bias=lambda kernel: ZERO)
OF_TORCH = ("kernel$", TORCH)
WAVES = ("freqs", normal(2 * np.pi)), ("phases", ("uniform", np.pi, np.pi / 3**0.5))
SYSTEMS = {
    "adm": (UNet(**SMALL | dict(mults=(1, 2), attend=(2,))), (X, NOISE, {}), start(LAST, OF_TORCH)),
    "adm, labels": (Label(999, 64, std=1.0), ({"label": IDS[:, 0]},), start(("table", normal(1.0)))),
    "adm, classifier": (
        Classifier(**SMALL), (X, NOISE),
        start((r"(conv2|attn_\d/proj|mid_attn/proj)/", ZERO), OF_TORCH, ("position", normal(32**-0.5)))),
    "adm, classifier adaptive": (Classifier(**SMALL, pool="adaptive"), (X, NOISE),
                                 start(LAST, ("final_linear/", ZERO), OF_TORCH)),
    "ddpm": (UNet(**SMALL, ddpm=True, scale_shift=False, resample="conv", learn_sigma=False), (X, NOISE, {}),
             start(LAST, ("qkv/kernel$", lambda shape: xavier(shape, 3)), ("kernel$", xavier), **NO_BIAS)),
    "glide": (UNet(**SMALL), (X, NOISE, SEQ), start(LAST, OF_TORCH)),
    "glide, text": (Text(50, 4, 32, 2, 2, 64), ({"tokens": IDS},),
                    start(OF_TORCH, ("token", normal(0.02)), ("position|padding", normal(0.01)))),
    "latent diffusion": (UNet(**SMALL, transformer=1, resample="conv", learn_sigma=False), (X, NOISE, SEQ),
                         start((r"(conv2|attn(_\d)?/proj|final_conv)/(kernel|bias)$", ZERO), OF_TORCH)),
    "latent diffusion, labels": (LabelToken(999, 64), ({"label": IDS[:, 0]},), start(("table", normal(1.0)))),
    "latent diffusion, kl": (KL(width=32, mults=(1,), depth=1, groups=8), (X,), start(OF_TORCH)),
    "latent diffusion, vq": (VQ(width=32, mults=(1,), depth=1, groups=8, codes=128), (X,),
                             start(OF_TORCH, ("codebook", uniform(1 / 128)))),
    "patchgan": (gan.Discriminator(16, 2), (X,), start(("kernel$", normal(0.02)), (r"norm_\d/scale", normal(0.02, 1.0)))),
    "patchgan, act": (gan.Discriminator(16, 2, "act"), (X,), start(("kernel$", normal(0.02)), (r"norm_\d/loc", ZERO))),
    "dit": (DiT(patch=2, width=48, depth=1, heads=2, channels=3), (X, NOISE, {"vec": jnp.zeros((1, 48))}),
            start((r"(modulation|final)/linear/kernel$|modulation/", ZERO), (r"time/.*kernel", normal(0.02)), ("kernel$", xavier),
                  **NO_BIAS)),
    "dit, labels": (Label(999, 64), ({"label": IDS[:, 0]},), start(("table", normal(0.02)))),
    "clip, text": (TextTower(24, 50, 4, 32, 3, 2), (IDS,), start(
        ("(qkv|^proj)/kernel$|^proj$", normal(32**-0.5)), ("(proj|fc2)/kernel$", normal((2 * 3 * 32) ** -0.5)),
        ("fc1/kernel$", normal(64**-0.5)), ("(qkv|proj)/bias$", ZERO), ("token", normal(0.02)), ("position", normal(0.01)))),
    "clip, vit": (ViT(24, 8, 2, 48, 2, 2), (X,), start(
        ("qkv/kernel$", xavier), ("(qkv|proj)/bias$", ZERO), OF_TORCH, ("cls|position|^proj$", normal(48**-0.5)))),
    "clip, resnet": (ResNet(24, 32, 8, (1, 1, 1, 1)), (jnp.zeros((1, 32, 32, 3)),), start(
        ("conv3/norm/scale", ZERO), ("norm/var", ONE), ("norm/mean", ZERO), ("pool_attn/.*kernel|position", normal(256**-0.5)),
        OF_TORCH)),
    "unclip, prior": (Prior(24, 4, 32, 2, 2), (jnp.zeros((1, 24)), NOISE, {"vec": jnp.zeros((1, 24)), "seq": SEQ["seq"]}),
                      start(OF_TORCH, ("query|position", normal(0.01)))),
    "dall-e, dvae": (DVAE(codes=16, width=16, mults=(1, 2), depth=1, init_width=8), (X,),
                     start(("kernel$", lambda shape: normal(fan_in(shape) ** -0.5)), **NO_BIAS)),
    "dalle-pytorch, dvae": (CodebookVAE(32, 32, 16, 2, 1), (X,), start(
        (r"up_\d/kernel", lambda shape: uniform((16 * shape[-1]) ** -0.5)),
        (r"up_\d/bias", uniform(16**-1.0)), OF_TORCH, ("codebook", normal(1.0)))),
    "edm2 A": (EDM2(16, (1,), 1, (1,), 16, 3, "A"), (X, NOISE, {}), start(LAST, ("out_conv/", ZERO), OF_TORCH)),
    "edm2 C": (EDM2(16, (1,), 1, (1,), 16, 3, "C"), (X, NOISE, {}), start(
        ("(conv2|proj|out_conv)/kernel", ZERO), OF_TORCH, *WAVES)),
    "edm2 G": (EDM2(16, (1,), 1, (1,), 16, 3), (X, NOISE, {}), start(
        ("weight$", normal(1.0)), ("gain", ZERO), *WAVES)),
    "edm2 A, labels": (OneHot(400, 64, normalised=False), ({"label": IDS[:, 0]},), start(("kernel", normal(400**-0.5)))),
}


def agrees(leaf, law):
    """Whether the values of an array are drawn from (name, mean, standard deviation): its first moments and its range."""
    name, mean, std = law
    x, n = (np.float64(leaf).ravel() - mean) / (std or 1), leaf.size
    if std == 0:
        return not x.any()
    within = np.abs(x).max() < (3**0.5 * (1 + 1e-5) if name == "uniform" else 6)
    full = n < 500 or np.abs(x).max() > (1.7 if name == "uniform" else 2.3)
    return within and full and abs(x.mean()) < 4.5 / n**0.5 and (n < 30 or abs((x**2).mean() - 1) < 6.5 / n**0.5)


# By default one network and the tables of labels, which are small.
@pytest.mark.parametrize("name", [
    name if name == "dit" or name.endswith("labels") else pytest.param(name, marks=pytest.mark.slow) for name in SYSTEMS])
def test_a_fresh_network_starts_as_its_recipe_says(name):
    module, args, rules = SYSTEMS[name]
    params = jax.device_get(jax.jit(module.init)(KEY, *args))["params"]
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    wrong = []
    for path, leaf in leaves.items():
        law = next((law for pattern, law in rules if re.search(pattern, path)), None)
        assert law is not None, f"no rule for {path}"
        of_bias = law is rules[-1][1]
        law = law(leaves[path.removesuffix("bias") + "kernel"].shape if of_bias else leaf.shape)
        if not agrees(leaf, law):
            wrong.append((path, leaf.shape, law, leaf.mean(), leaf.std()))
    assert not wrong


@pytest.mark.parametrize("shape", [(300, 200), (3, 3, 40, 60), (1, 1, 300, 200)])
def test_torch_says_the_same(shape):
    torch = pytest.importorskip("torch")
    window, channels, features = shape[:-2], *shape[-2:]
    layer = torch.nn.Conv2d(channels, features, window) if window else torch.nn.Linear(channels, features)
    kernel, bias = init.TORCH.kernel(KEY, shape, jnp.float32), init.TORCH.bias(fan_in(shape))(KEY, (features,), jnp.float32)
    for ours, theirs in ((kernel, layer.weight), (bias, layer.bias)):
        theirs = theirs.detach().numpy()
        assert abs(np.abs(ours).max() / np.abs(theirs).max() - 1) < 0.05
        assert abs(ours.std() / theirs.std() - 1) < 5 / theirs.size**0.5
        assert abs(ours.mean() - theirs.mean()) < 7 * theirs.std() / theirs.size**0.5


def test_layers_side_by_side_start_as_each_alone():
    kernel = init.side_by_side(init.XAVIER, 3).kernel(KEY, (64, 3 * 64), jnp.float32)
    assert agrees(np.asarray(kernel), xavier((64, 64))) and np.abs(kernel[:, :64] - kernel[:, 64:128]).min() > 0
