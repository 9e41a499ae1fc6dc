"""What tests of exports share: there and back again, refusals, and arrays between the two libraries."""
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from golden_case import load as load_case

from diffusion_jax.build import ConfigError, build
from diffusion_jax.pretrained import export, package, systems

GOLDENS = Path(__file__).parent / "goldens"


def golden(tmp_path, name, case, options=None, **more):
    """(page, parameters, official weights) of a golden case, imported; options is where in its config the constructor's are."""
    found = load_case(GOLDENS / f"{case}.json")
    official = None
    if options is not None:
        official = tmp_path / "official.json"
        kind = {"class": found.config["class"]} if "class" in found.config else {}
        own = found.config[options] if options else found.config
        official.write_text(json.dumps({"image_size": 8} | own | kind | more))
    np.savez(tmp_path / "source.npz", **found.weights)
    return *systems.load(name, tmp_path / "source.npz", official), found.weights


def there_and_back(folder, page, params, file=package.WEIGHTS):
    """A run, written for its official code and imported again: (the package, the page that comes back); all is as it was."""
    system = export.of_page(page)
    written = export.package(page, params, "original")
    package.write(folder, written.files)
    assert (folder / file).suffix != ".pkl" and not list(folder.glob("*.pt"))
    official = folder / package.CONFIG
    back, again = systems.load(system.name, folder / file if file else folder, official if official.is_file() else None)
    same({"cond": {}} | params, {"cond": {}} | again)
    if "model" in page and "name" in page["model"]:
        assert build(back["model"]) == build(page["model"])
    return written, back


def same(one, other):
    """Asserts that two trees hold the same bits."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def refused(page, params, to, says):
    """Asserts that an export is refused in one line that says so."""
    with pytest.raises(ConfigError, match=says) as error:
        export.package(page, params, to)
    assert "\n" not in str(error.value)


def filled(shapes, seed=0):
    """Random numbers in place of shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.float32(0.05 * rng.standard_normal(leaf.shape)), shapes)


def drawn(task, **batch):
    """Random parameters of a task, and of its first stage, if any."""
    batch = {"image": np.zeros((1, *task.shape), np.float32)} | batch
    params = filled(jax.eval_shape(lambda: task.init(jax.random.key(0), batch)))
    first = getattr(task, "first_stage", None)
    if first is None:
        return params
    picture = np.zeros((1, *first.shape), np.float32)
    return {**params, "first_stage": filled(jax.eval_shape(lambda: first.init(jax.random.key(1), {"image": picture})), 1)}


def channels_first(x):
    """[B, H, W, C] for PyTorch."""
    import torch

    return torch.tensor(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def channels_last(tensor):
    """And back."""
    return np.moveaxis(tensor.detach().numpy(), 1, -1)
