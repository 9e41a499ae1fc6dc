"""What this folder's tests share: runs with random weights, a cheap feature network, digits in files, and quick compilation."""
import numpy as np
import pytest
from compiling import compiled_once
from pages import measuring, page
from stubs import digit_files, random_params, stub_network, with_stub

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.image import to_unit
from diffusion_jax.evaluation import compare, features
from diffusion_jax.runs.folder import open_run, save_start
from diffusion_jax.train.state import plain, task_of


@pytest.fixture(scope="package", autouse=True)
def compile_once(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """A page's tiny run with random weights, in a folder of its own: fresh('digits', seed=1) -> Run."""
    root = tmp_path_factory.mktemp("fresh")

    def run(name, seed=0):
        folder = root / f"{name}_{len(list(root.iterdir()))}"
        config = plain(page(name))
        task, data = task_of(config), config["data"]
        record = build(data["decode"])(build(data["train"])[0], np.random.default_rng(0))
        batch = {key: np.asarray(value)[None] for key, value in record.items() if not isinstance(value, str)}
        batch["image"] = to_unit(batch["image"])
        save_start(folder, config, random_params(task, batch, seed, scale=0.1))
        return open_run(folder)

    return run


@pytest.fixture(scope="session")
def judge(fresh):
    """A classifier of the digits."""
    return fresh("digits_classifier")


@pytest.fixture(scope="session")
def clip(fresh):
    """A CLIP of the digits."""
    return fresh("digits_clip")


@pytest.fixture
def network():
    """A cheap feature network."""
    return stub_network()


@pytest.fixture
def stub(monkeypatch, network):
    """The cheap network in place of the published ones, under the name 'stub'."""
    monkeypatch.setattr(features, "network_of", with_stub(features.network_of, network))
    monkeypatch.setattr(features, "named", with_stub(features.named, ("", "stub")))


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Folders of classes, and an .npz, of the first digits."""
    return digit_files(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def refused(stub, tmp_path):
    """Measuring is refused in one line."""
    def check(says, **options):
        with pytest.raises(ConfigError, match=says) as error:
            compare.of_images(str(tmp_path), measuring(**{"features": "stub", "batch": 16} | options))
        assert "\n" not in str(error.value)

    return check
