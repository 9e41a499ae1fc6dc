"""The published Inception file: its keys, what it becomes, and every way in which a file may be another."""
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.pretrained import inception

DOC = json.loads((Path(__file__).parent.parent / "goldens" / "metrics" / "inception_fid_resize64.json").read_text())
SHAPES = {key: tuple(spec["shape"]) for key, spec in DOC["weights"]["tensors"].items()}
NORMS = [key.removesuffix(".running_var") for key in SHAPES if key.endswith(".running_var")]
COUNTERS = {f"{norm}.num_batches_tracked": () for norm in NORMS}
NAMES = list(inception.FILES)


def one_line(error, *parts):
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value), str(error.value)


def structs(shapes):
    return {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in shapes.items()}


@pytest.mark.parametrize("counters", [{}, COUNTERS], ids=["without", "with"])
def test_every_published_key_has_its_place(counters):
    shapes = SHAPES | counters
    assert len(shapes) in (472, DOC["config"]["state_dict_keys"])
    params = jax.eval_shape(inception.convert, structs(shapes))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 23_885_392
    back = jax.eval_shape(lambda params: inception.revert(params, shapes), params)
    assert {key: leaf.shape for key, leaf in back.items()} == SHAPES


def test_a_copy_in_another_format_is_read_exactly(tmp_path):
    weights = {key: np.full(shape, i, np.float16) for i, (key, shape) in enumerate(SHAPES.items())}
    np.savez(tmp_path / "copy.npz", **weights)
    params = inception.load(tmp_path / "copy.npz")
    unit = params["trunk"]["Mixed_7c"]["branch3x3dbl_3b"]
    assert unit["kernel"].shape == (3, 1, 384, 384)
    order = list(SHAPES)
    places = dict(kernel="conv.weight", scale="bn.weight", bias="bn.bias", mean="bn.running_mean", var="bn.running_var")
    for name, official in places.items():
        assert np.unique(unit[name]) == [order.index(f"Mixed_7c.branch3x3dbl_3b.{official}")]


def test_an_absent_file_says_where_to_get_it(tmp_path):
    for path in (tmp_path, tmp_path / NAMES[0], tmp_path / "none" / "x.pth"):
        with pytest.raises(ConfigError) as error:
            inception.load(path)
        one_line(error, "there are no Inception weights", inception.FILES[NAMES[0]] + NAMES[0], "SHA-256 6726825d")


@pytest.mark.parametrize("name", NAMES)
def test_another_file_under_the_published_name_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"cut short")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(ConfigError) as error:
            inception.load(path)
        one_line(error, name, "is not the published file: its SHA-256 begins", "not 6726825d")


def test_the_checksum_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    whole = hashlib.sha256(b"abc").hexdigest()
    for digits in (whole, whole[:8]):
        inception.check_sha256(tmp_path / "x", digits)
    with pytest.raises(ConfigError, match="begins ba7816bf, not ba7816b0"):
        inception.check_sha256(tmp_path / "x", whole[:7] + "0")
    assert all(inception.SHA256[:8] in name for name in NAMES)


def test_other_keys_and_shapes_are_refused():
    torchvision = SHAPES | {"fc.weight": (1000, 2048), "fc.bias": (1000,), "AuxLogits.fc.bias": (1000,)}
    with pytest.raises(ConfigError) as error:
        jax.eval_shape(inception.convert, structs(torchvision))
    one_line(error, "wrong shape: fc.weight (1000, 2048)", "left over: AuxLogits.fc.bias")
    with pytest.raises(ConfigError) as error:
        jax.eval_shape(inception.convert, structs({key: shape for key, shape in SHAPES.items() if "Mixed_7c" not in key}))
    one_line(error, "missing: trunk/Mixed_7c/branch1x1/bias", "more")
