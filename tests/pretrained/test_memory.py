"""What keeps an import small: arrays that are not copied, pages that are let go of; whole imports in bfloat16."""
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench_import import peak
from exports import same
from pages import ask
from safetensors.numpy import load_file
from sd3_parts import page, params_of

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.pretrained import export, memory, package, reader, systems
from pretrained import test_sd_export, test_sdxl


def test_an_array_goes_to_the_device_without_a_copy():
    rows = np.arange(6, dtype=np.float16).reshape(2, 3)
    typed = memory.typed(rows.T, jnp.bfloat16)
    placed = memory.to_device(typed)
    assert placed.unsafe_buffer_pointer() == typed.ctypes.data
    assert placed.dtype == jnp.bfloat16 and placed.shape == (3, 2)
    np.testing.assert_array_equal(np.asarray(placed, np.float32), rows.T)
    for shape in ((), (0,), (3, 0)):
        assert memory.to_device(memory.empty(shape, np.float32)).shape == shape


def test_types_are_changed_within_and_only_those_of_floating_point():
    assert memory.stored_type(np.float32) == np.float32
    with memory.stored_in("bfloat16"):
        assert memory.stored_type(np.float32) == jnp.bfloat16 and memory.stored_type(np.int32) == np.int32
    assert memory.stored_type(np.float32) == np.float32


def mapped():
    """Bytes of mapped files that this process holds."""
    return 1024 * int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def test_pages_of_a_file_are_let_go_of_and_read_again(tmp_path):
    package.save_weights(tmp_path / "x.safetensors", {"a": np.ones((64, 2**18), np.float32), "b": np.arange(3.0)})
    weights = reader.read(tmp_path / "x.safetensors")
    before = mapped()
    assert weights["a"].sum() == 2**24
    read = mapped()
    memory.release(weights["a"].T)
    assert read - before > 2**25 and mapped() - before < 2**23
    np.testing.assert_array_equal(weights["b"], np.arange(3.0))
    memory.release(np.ones(3))                                                          # of no file: nothing happens


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """A folder with a tiny Stable Diffusion 3 in bfloat16, as a single file and as a folder of diffusers."""
    folder = tmp_path_factory.mktemp("sd3")
    # A table of positions in 16 bits hardly tells its step: a file is taken for a published one, a folder says it.
    for target, step in (("original", 64 / 8), ("diffusers", 0.25)):
        spec = page(t5=False)
        spec["model"]["step"] = step
        package.write(folder / target, export.package(spec, params_of(spec), target).files, "bfloat16")
    return folder


def test_weights_stay_in_bfloat16_and_come_back_bit_for_bit(halves, tmp_path):
    file = halves / "original" / "model.safetensors"
    spec, params = systems.load("sd3", file, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    _, whole = systems.load("sd3", file)
    same(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), whole)
    package.write(tmp_path / "back", export.package(spec, params, "original").files, "bfloat16")
    same(load_file(file), load_file(tmp_path / "back" / "model.safetensors"))


@pytest.mark.slow
def test_pictures_are_those_of_the_same_weights_in_float32(halves, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = []
    for dtype in systems.DTYPES:
        ask("import_weights", dtype, system="sd3", source=str(halves / "diffusers"), dtype=dtype)
        pipe = pipeline(dtype)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves((pipe.run.model.params, pipe.run.model.first))} == {dtype}
        tokens = np.ones((2, pipe.run.task.cond.length), np.int32)
        images.append(np.concatenate(list(pipe.using(steps=4, guidance=2.0).images({"tokens": tokens}, 2))))
    np.testing.assert_allclose(images[0], images[1], atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_all_weights_of_other_systems_are_kept_so_too(name, tmp_path):
    spec = {"sd": test_sd_export, "sdxl": test_sdxl}[name].page()
    params = test_sd_export.random(spec) if name == "sd" else test_sdxl.params_of(spec)
    written = export.package(spec, params, "diffusers")
    package.write(tmp_path / "x", written.files, "bfloat16")
    back, params = systems.load(name, tmp_path / "x", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    package.write(tmp_path / "back", export.package(back, params, "diffusers").files, "bfloat16")
    for file in sorted((tmp_path / "x").rglob("*.safetensors")):
        same(load_file(file), load_file(tmp_path / "back" / file.relative_to(tmp_path / "x")))


def test_bfloat16_is_for_the_large_models():
    with pytest.raises(ConfigError, match="--dtype bfloat16 is for the large models of sd, sd3, sdxl: those of clip are kept in"):
        systems.load("clip", "x.safetensors", dtype="bfloat16")
    with pytest.raises(ConfigError, match="unknown type of weights 'float16'"):
        systems.load("sd3", "x.safetensors", dtype="float16")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["", "bfloat16"])
def test_an_import_takes_little_more_than_its_weights(tmp_path, dtype):
    """2.3 GB of them, or half of that, beside 0.3 GB of the program: tests/bench_import.py measures the published size."""
    most, weights = peak(tmp_path, dtype, depth=6)
    assert most < 1.15 * weights + 3e8
