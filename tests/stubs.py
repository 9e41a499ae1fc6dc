"""Random weights, a cheap feature network, and digits in files: what tests share that no training is to make."""
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data.digits import Digits
from diffusion_jax.data.pictures import save_png
from diffusion_jax.metrics.extract import Network
from diffusion_jax.pretrained.shapes import shapes_of

WEIGHTS = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)


def random_params(task, batch: dict, seed: int = 0, scale: float = 0.4) -> dict:
    """Parameters of a task drawn at random, none of them zero; NumPy's, which cost no transfer each."""
    rng = np.random.default_rng(seed)
    shapes = shapes_of(task.init, jax.random.key(0), batch)
    return jax.tree.map(lambda leaf: np.asarray(rng.normal(0, scale, leaf.shape), leaf.dtype), shapes)


def see(params, images):
    flat = images.reshape(len(images), -1) / 255
    return {"features": flat @ params, "spatial": flat[:, 10:13], "logits": jnp.tanh(flat @ params)}


def stub_network():
    """It sees images of 64 pixels."""
    return Network("stub", see, WEIGHTS)


def with_stub(network_of, network):
    """`features.network_of`, or `features.named`, with an answer of one's own under the name 'stub'."""
    return lambda where, resize=None: network if where == "stub" else network_of(where, resize)


def digit_files(root):
    """Writes the first held-out digits: folder/<class>/<number>.png and digits.npz."""
    source = Digits("test")
    records = [source[i] for i in range(60)]
    for i, record in enumerate(records):
        save_png(root / "folder" / str(record["label"]) / f"{i:03d}.png", record["image"])
    labels = np.array([record["label"] for record in records])
    np.savez(root / "digits.npz", arr_0=np.stack([record["image"] for record in records]), arr_1=labels)
    return root
