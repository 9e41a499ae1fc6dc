"""Published files beside a checkout, opened by what reads them; a test is left out where its file or package is not here."""
import hashlib
import importlib.util
import re
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from pages import page
from safetensors import safe_open

from diffusion_jax.data.clip_bpe import MERGES, ClipBPE, find_merges
from diffusion_jax.pretrained import karlo, lora
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.train.state import plain, task_of

WEIGHTS = Path(__file__).parents[3] / "shared" / "data" / "weights"
pytestmark = pytest.mark.slow


def published(name):
    """The path of a file."""
    if not (WEIGHTS / name).is_file():
        pytest.skip(f"{WEIGHTS / name} is not here")
    return WEIGHTS / name


def test_karlos_statistics_are_the_bytes_of_the_file():
    """Mean, then deviation, of ViT-L/14's embeddings."""
    pytest.importorskip("torch")
    path = published("karlo_ViT-L-14_stats.th")
    assert path.match(karlo.STATISTICS[0])
    mean, std = karlo._pair(path)
    assert mean.shape == std.shape == (768,) and mean.dtype == std.dtype == np.float32
    assert np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if re.search(r"/data/\d+$", name))
        stored = [np.frombuffer(archive.read(name), "<f4") for name in names]
    np.testing.assert_array_equal([mean, std], stored)


@pytest.fixture(scope="module")
def stable_diffusion():
    """(task, shapes of its parameters) of the whole Stable Diffusion 1."""
    task = task_of(plain(page("stable_diffusion", "")))
    batch = {"image": jax.ShapeDtypeStruct((1, 64, 64, 4), np.float32), "tokens": jax.ShapeDtypeStruct((1, 77), np.int32)}
    return task, shapes_of(task.init, jax.random.key(0), batch)


def test_a_real_lora_has_a_place_for_all_but_its_words(stable_diffusion, caplog):
    path = published("lora_disney.safetensors")
    task, params = stable_diffusion
    changes = lora.read(path, task, params)
    with safe_open(path, framework="numpy") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        words = sorted(key for key in shapes if file.metadata().get(key) == "<embed>")
    assert words == ["<s1>", "<s2>"] and "the words <s1>, <s2>, which are left out" in caplog.text
    numbers = {part: {int(match[1]) for key in shapes if (match := re.match(rf"{part}:(\d+):", key))}
               for part in ("unet", "text_encoder")}
    assert len(shapes) == len(words) + 2 * sum(map(len, numbers.values()))
    # The UNet has 16 transformers with 8 matrices of attention and one gate each, the text tower 12 layers of 4.
    assert {part: len(found) for part, found in numbers.items()} == {"unet": 16 * 9, "text_encoder": 12 * 4}
    assert len(changes) == 16 * 9 + 12 * 4
    assert len({change.module for change in changes}) == len(changes)
    assert all(change.factor == 1 and change.down.shape[0] == 1 for change in changes)
    assert all(np.isfinite(change.down).all() and np.isfinite(change.up).all() for change in changes)
    assert any(np.any(change.up) for change in changes)


@pytest.mark.parametrize("text, numbers", [("a photo of a cat", [320, 1125, 539, 320, 2368]), ("", [])])
def test_the_merges_of_open_clip_are_the_published_ones(text, numbers):
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("open_clip_torch is not installed: pip install --no-deps open_clip_torch")
    assert hashlib.md5(find_merges().read_bytes()).hexdigest() == "933b7abbbbde62c36f02f0e6ccde464f"
    tokenizer = ClipBPE()
    assert len(tokenizer.pairs) == MERGES and tokenizer.vocab == 49408
    assert tokenizer(text).tolist() == [49406, *numbers, 49407, *[0] * (75 - len(numbers))]
