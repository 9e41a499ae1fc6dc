"""The published weights of the FID Inception network as our Inception.

Two projects publish the same file, a flat state dict of TensorFlow's graph of 2015-12-05:

    pt_inception-2015-12-05-6726825d.pth            pytorch-fid
    weights-inception-2015-12-05-6726825d.pth       torch-fidelity

The name ends, as is torch.hub's custom, with the first digits of the SHA-256. torchvision's own Inception is another network.
"""
from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.models.inception import SMALLEST, Inception
from diffusion_jax.pretrained import rules
from diffusion_jax.pretrained.reader import read
from diffusion_jax.pretrained.rules import CONV, TRANSPOSE, Rule, batch_norm
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.types import Array, Params

FILES = {
    "pt_inception-2015-12-05-6726825d.pth": "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/",
    "weights-inception-2015-12-05-6726825d.pth": "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/",
}
"""Name -> where to get it."""
SHA256 = "6726825d"
"""How the SHA-256 of either begins; their names hold it."""


def _unit(key: str, path: str) -> list[Rule]:
    """The rules of a convolution and its batch norm."""
    return [Rule(rf"{key}\.conv\.weight", f"{path}/kernel", CONV), *batch_norm(rf"{key}\.bn", path)]


RULES = [
    *_unit(r"(Conv2d_\w+)", r"trunk/\1"),
    *_unit(r"(Mixed_\w+)\.(branch\w+)", r"trunk/\1/\2"),
    Rule(r"fc\.weight", "fc_kernel", TRANSPOSE),
    Rule(r"fc\.bias", "fc_bias"),
]
COUNTER = ".num_batches_tracked"
"""How many batches a norm was trained on; it changes nothing, and not every file has it."""


def convert(state_dict: rules.Weights) -> Params:
    """An official state dict as the parameters of `Inception`.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    x = jax.ShapeDtypeStruct((1, SMALLEST, SMALLEST, 3), jnp.float32)
    target = shapes_of(Inception().init, jax.random.key(0), x)["params"]
    return rules.convert({key: w for key, w in state_dict.items() if not key.endswith(COUNTER)}, RULES, target)


def revert(params: Params, shapes: Mapping[str, rules.Shape]) -> dict[str, Array]:
    """Parameters as an official state dict of the given shapes, without the counters."""
    return rules.revert(params, RULES, {key: shape for key, shape in shapes.items() if not key.endswith(COUNTER)})


def load(path: str | Path) -> Params:
    """The parameters of `Inception` from a published file.

    Args:
      path: the file, or the folder that holds it under its published name. A file of a published name must have the published
        checksum; one of another name, such as a copy as .safetensors, need only fit.

    Raises:
      ConfigError: there is no such file, it is not what its name promises, or the weights do not fit.
    """
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in FILES if (path / name).is_file()), path / next(iter(FILES)))
    if not path.is_file():
        name, url = next(iter(FILES.items()))
        raise ConfigError(f"there are no Inception weights {path}: get {url}{name} (SHA-256 {SHA256}...) and put it there")
    if path.name in FILES:
        check_sha256(path, SHA256)
    return convert(read(path))


def check_sha256(path: str | Path, digits: str) -> None:
    """Refuses a file whose SHA-256 does not begin with `digits`.

    Raises:
      ConfigError: it does not; the line tells both.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(digits):
        raise ConfigError(f"{path} is not the published file: its SHA-256 begins {digest[:8]}, not {digits}; get it again")
