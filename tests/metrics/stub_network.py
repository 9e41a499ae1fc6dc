"""A network of one layer, and pictures that it sees."""
import jax.numpy as jnp
import numpy as np

from diffusion_jax.metrics.extract import Network
from diffusion_jax.metrics.images import Pictures

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (45, 6, 6, 1), dtype=np.uint8)
LABELS = np.arange(45) % 3
WEIGHTS = RNG.normal(size=(36, 4)).astype(np.float32)


def see(params, images):
    flat = images.reshape(len(images), -1) / 255
    return {"features": jnp.tanh(flat @ params), "logits": flat @ params}


NETWORK = Network("stub", see, WEIGHTS)


def pictures(pixels=PIXELS, labels=LABELS):
    return Pictures(lambda i: {"image": pixels[i], "label": labels[i]}, len(pixels), "test images")
