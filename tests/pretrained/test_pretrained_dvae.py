"""Discrete VAEs from files: a pickle of a whole module is read without running it, DALLE-pytorch's by its options."""
import sys
import types

import numpy as np
import pytest
from dvae_keys import official_shapes

from diffusion_jax.build import ConfigError, build
from diffusion_jax.pretrained import dvae
from diffusion_jax.train.state import task_of

torch = pytest.importorskip("torch")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder with encoder.pkl and decoder.pkl of a tiny network, pickled as openai/DALL-E's are: by a package of that name."""
    module = types.ModuleType("dall_e.encoder")

    class Encoder(torch.nn.Module):
        def __init__(self, shapes):
            super().__init__()
            for name, shape in shapes.items():
                *path, last = name.split(".")
                inner = self
                for part in path:
                    if part not in inner._modules:
                        inner.add_module(part, torch.nn.Module())
                    inner = inner._modules[part]
                inner.register_parameter(last, torch.nn.Parameter(torch.randn(shape)))

    Encoder.__module__, Encoder.__qualname__ = module.__name__, "Encoder"
    module.Encoder = Encoder
    monkeypatch.setitem(sys.modules, "dall_e", types.ModuleType("dall_e"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    official = {}
    for half in dvae.FILES:
        network = Encoder(official_shapes(half))
        official[half] = {key: value.detach().numpy() for key, value in network.state_dict().items()}
        torch.save(network, tmp_path / f"{half}.pkl")
    monkeypatch.delitem(sys.modules, module.__name__)
    monkeypatch.delitem(sys.modules, "dall_e")
    return tmp_path, official


def test_a_pickled_module_becomes_a_task_and_its_parameters(published):
    folder, official = published
    page, params = dvae.load(folder, {"image_size": 16})
    task = task_of(page)
    assert task.grid == (8, 8) and task.codes == 12
    back = dvae.revert(params["model"], {f"{half}/{key}": w.shape for half, part in official.items() for key, w in part.items()})
    for half, part in official.items():
        for key, want in part.items():
            np.testing.assert_array_equal(back[f"{half}/{key}"], want)


class Harmful:
    def __reduce__(self):
        return print, ("run",)


def test_a_pickle_that_runs_something_is_refused(tmp_path, capsys):
    torch.save(Harmful(), tmp_path / "encoder.pkl")
    with pytest.raises(ConfigError, match="print, which is code"):
        dvae.load(tmp_path)
    assert capsys.readouterr().out == ""
    (tmp_path / "encoder.pkl").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match="encoder.pkl is"):
        dvae.load(tmp_path)
    (tmp_path / "encoder.pkl").unlink()
    with pytest.raises(ConfigError, match="holds no encoder.pkl"):
        dvae.load(tmp_path)


def test_dalle_pytorchs_file_is_read_by_its_options(tmp_path):
    import jax

    official = dict(image_size=16, num_tokens=10, codebook_dim=6, num_layers=2, num_resnet_blocks=1, hidden_dim=8)
    model = dvae.codebook_model(official)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), dvae.shapes(model))
    names = {key: f"{name}.weight" for name, key in dvae.codebook_keys(model).items()}
    assert names["encoder/block_0"] == "encoder.2.weight" and names["decoder/input"] == "decoder.0.weight"
    state = {"codebook.weight": params["codebook"]}
    for half in dvae.FILES:
        for layer, parts in params[half].items():
            place = names[f"{half}/{layer}"].removesuffix(".weight")
            inner = parts.items() if "kernel" not in parts else (("", parts),)
            for conv, leaves in inner:
                at = f"{place}.net.{2 * (int(conv[-1]) - 1)}" if conv else f"{place}.0" if layer[:2] in ("do", "up") else place
                kernel = leaves["kernel"] if leaves["kernel"].ndim == 4 else leaves["kernel"][None, None]
                flipped = kernel[::-1, ::-1].transpose(2, 3, 0, 1)
                state[f"{at}.weight"] = flipped if layer.startswith("up") else kernel.transpose(3, 2, 0, 1)
                state[f"{at}.bias"] = leaves["bias"]
    state = {key: torch.tensor(np.ascontiguousarray(value)) for key, value in state.items()}
    for content, told in ((state, official), ({"hparams": official, "weights": state}, None)):
        torch.save(content, tmp_path / "dvae.pt")
        page, found = dvae.load(tmp_path / "dvae.pt", told)
        jax.tree.map(np.testing.assert_array_equal, found["model"], params)
        task = task_of(page)
        assert build(page["model"]) == model and task.reconstruction == "l2" and task.shape == (16, 16, 3)
