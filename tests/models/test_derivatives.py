"""Every network has derivatives of every kind: forward, reverse, and forward over reverse."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from diffusion_jax.models.bert import TextEncoder
from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.clip import ViT
from diffusion_jax.models.clip_resnet import ResNet
from diffusion_jax.models.dalle import DALLE
from diffusion_jax.models.diffit import DiffiT
from diffusion_jax.models.diffit_image import ImageDiffiT
from diffusion_jax.models.dinov2 import DINOv2
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.dvae import DVAE
from diffusion_jax.models.dvae_codebook import CodebookVAE
from diffusion_jax.models.edm2 import EDM2
from diffusion_jax.models.gan import Discriminator
from diffusion_jax.models.inception import Inception
from diffusion_jax.models.lpips import LPIPS
from diffusion_jax.models.prior import Prior
from diffusion_jax.models.prior_ar import ARPrior
from diffusion_jax.models.unet import UNet
from diffusion_jax.models.vae import KL

STEP = 5e-5
"""Of finite differences: small, because of the kinks of networks that are rectified."""
RECTIFIED = ("discrete vae", "codebook vae", "discriminator", "resnet of clip", "lpips", "lpips of alexnet", "inception")
"""Networks whose gradients jump, so that differences of them say nothing."""
DIRECTIONS = 4
FEW = ("autoencoder of one level",)
"""Of convolutions, which have a derivative of their own, and attention; the others are slow."""


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def pictures(channels=3, side=8):
    return draw(0, 2, side, side, channels)


def denoised(channels=3, width=8, **cond):
    """What a denoiser sees: x, its noise level and a condition."""
    return pictures(channels), draw(1, 2), {"vec": draw(2, 2, width), **cond}


def tokens(*shape, codes=10):
    return jnp.asarray(np.random.default_rng(3).integers(0, codes, shape))


def texts(length, width):
    return {"seq": draw(4, 2, length, width), "seq_mask": jnp.ones((2, length), bool)}


# What batch norms saw has no gradient, by design: these networks take their other norms.
NETWORKS = {
    "unet": (UNet, dict(width=8, mults=(1, 2), depth=1, attend=(2,), groups=4), denoised(width=32)),
    "unet, linear attention": (
        UNet, dict(width=8, mults=(1,), depth=1, attend=(1,), groups=4, attention="linear"), denoised(width=32)),
    "unet with text": (
        UNet, dict(width=8, mults=(1, 2), depth=1, attend=(2,), groups=4, transformer=1), (*denoised()[:2], texts(3, 8))),
    "classifier": (Classifier, dict(width=8, mults=(1, 2), depth=1, attend=(2,), groups=4, num_classes=5),
                   (pictures(), draw(1, 2))),
    "dit": (DiT, dict(patch=2, width=8, depth=2, heads=2, channels=3), denoised()),
    "dit, cross attention": (
        DiT, dict(patch=2, width=8, depth=1, heads=2, channels=3, block="cross_attention"), denoised(**texts(3, 8))),
    "diffit": (DiffiT, dict(patch=2, width=8, depth=1, heads=2, grid=4), denoised(4)),
    "diffit of images": (
        ImageDiffiT, dict(width=8, mults=(1, 2), depth=1, windows=(4, 4), head_channels=4, groups=4), denoised(width=32)),
    "edm2": (EDM2, dict(width=8, mults=(1, 2), depth=1, attend=(2,), head_channels=4), denoised(4, 16)),
    "prior": (Prior, dict(features=6, context=4, width=8, layers=1, heads=2),
              (draw(0, 2, 6), draw(1, 2), {"vec": draw(2, 2, 6), **texts(4, 8)})),
    "autoregressive prior": (
        ARPrior, dict(length=4, context=4, width=8, depth=1, heads=2, codes=10, dots=4),
        ({"clip_text": draw(0, 2, 6), "text_states": draw(1, 2, 4, 8), "text_mask": jnp.ones((2, 4), bool),
          "clip_dot": jnp.zeros((2,), jnp.int32)}, tokens(2, 4))),
    "dalle": (DALLE, dict(text_codes=10, image_codes=10, text_length=3, grid=4, width=8, depth=3, heads=2, kernel=3),
              (tokens(2, 3), tokens(2, 16))),
    "discrete vae": (DVAE, dict(codes=6, width=8, mults=(1, 2), depth=1, init_width=8), (pictures(),)),
    "codebook vae": (CodebookVAE, dict(codes=6, code_width=8, width=8, layers=1, blocks=1), (pictures(),)),
    "autoencoder": (KL, dict(width=8, mults=(1, 2), depth=1, groups=4), (pictures(),)),
    "autoencoder of one level": (KL, dict(width=4, mults=(1,), depth=0, groups=2), (pictures(side=4),)),
    "discriminator": (Discriminator, dict(width=8, depth=2, norm="act"), (pictures(side=16),)),
    "vision transformer": (ViT, dict(features=6, size=8, patch=4, width=8, layers=1, heads=2), (pictures(),)),
    "resnet of clip": (ResNet, dict(features=6, size=32, width=8, layers=(1, 1, 1, 1), norm="group"), (pictures(side=32),)),
    "text encoder": (TextEncoder, dict(vocab=10, context=4, width=8, layers=1, heads=2, head_channels=4), (tokens(2, 4),)),
    "lpips": (LPIPS, dict(width=4), (pictures(side=32), draw(9, 2, 32, 32, 3))),
    "lpips of alexnet": (LPIPS, dict(width=4, net="alex"), (pictures(side=32), draw(9, 2, 32, 32, 3))),
    "dinov2": (DINOv2, dict(width=8, depth=1, heads=2, patch=4), (pictures(),)),
    "inception": (Inception, {}, (pictures(side=75),)),
}

each = pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in NETWORKS])


def parameters(module, args):
    """Variables that no initialiser has set to zero."""
    shapes = traverse_util.flatten_dict(jax.eval_shape(module.init, jax.random.key(0), *args))
    leaves = {}
    for number, (path, leaf) in enumerate(shapes.items()):
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100
        values = draw(100 + number, *leaf.shape) / np.sqrt(fan_in)
        leaves[path] = jnp.abs(values) + 1 if path[-1] in ("scale", "var") else values
    return traverse_util.unflatten_dict(leaves)


def surface(name, dtype):
    """s(h): a weighted sum of what a network puts out, h [DIRECTIONS] along directions of its parameters and inputs."""
    kind, options, args = NETWORKS[name]
    module = kind(**options, **({} if dtype == "float32" else {"dtype": dtype}))
    leaves, treedef = jax.tree.flatten((parameters(module, args), args))

    def moved(number, leaf, h):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf + jnp.tensordot(h, draw(1000 + number, DIRECTIONS, *leaf.shape), 1) / np.sqrt(leaf.size)

    def s(h):
        variables, inputs = treedef.unflatten([moved(number, leaf, h) for number, leaf in enumerate(leaves)])
        outputs = jax.tree.leaves(module.apply(variables, *inputs))
        means = [draw(2000 + i, *out.shape) * out.astype(jnp.float32) / np.sqrt(out.size) for i, out in enumerate(outputs)]
        return sum(jnp.sum(mean) for mean in means)

    return s


def near(values, exact, tolerance):
    """Whether vectors differ by less than a share of their length."""
    values, exact = np.stack(values), np.stack(exact)
    return np.linalg.norm(values - exact) <= tolerance * np.linalg.norm(exact)


def slopes(f, smooth=True):
    """The derivatives of f at 0 along the axes, by forward mode; those of a smooth f after a comparison with differences."""
    program = jax.jit(lambda h, axis: jax.jvp(f, (h,), (axis,)))
    axes = np.eye(DIRECTIONS, dtype=np.float32)
    forward = [program(np.zeros_like(axis), axis)[1] for axis in axes]
    if smooth:
        differences = [(program(STEP * axis, axis)[0] - program(-STEP * axis, axis)[0]) / (2 * STEP) for axis in axes]
        assert near(forward, differences, 0.05)
    return np.stack(forward)


@each
@pytest.mark.slow
def test_forward_derivatives_are_those_of_finite_differences(name):
    slopes(surface(name, "float32"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_forward_over_reverse(name):
    """The reverse derivative is the forward one, and its own derivatives are a symmetric matrix, that of finite differences."""
    s = surface(name, "float32")
    hessian = slopes(jax.grad(s), smooth=name not in RECTIFIED)
    assert near(hessian, hessian.T, 1e-2)
    assert near([jax.jit(jax.grad(s))(np.zeros(DIRECTIONS, np.float32))], [slopes(s)], 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (kind, _, _) in NETWORKS.items()
                                  if "dtype" in kind.__dataclass_fields__ and name not in RECTIFIED])
def test_bfloat16_derivatives_are_near_those_of_float32(name):
    zero = np.zeros(DIRECTIONS, np.float32)
    low, exact = (jax.jit(jax.jacfwd(surface(name, dtype)))(zero) for dtype in ("bfloat16", "float32"))
    assert near([low], [exact], 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_linearized(name):
    s = surface(name, "float32")
    zero = np.zeros(DIRECTIONS, np.float32)
    assert jax.eval_shape(lambda h: jax.linearize(s, h)[1](h), zero).shape == ()
    assert jax.eval_shape(jax.jacfwd(jax.grad(s)), zero).shape == (DIRECTIONS, DIRECTIONS)
