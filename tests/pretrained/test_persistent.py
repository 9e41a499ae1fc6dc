"""Pickles of the kind that EDM2 publishes, written by stand-ins for its classes: read whole, and never run."""
import collections
import pickle
import sys
import types

import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.pretrained import edm2, persistent, rules

torch = pytest.importorskip("torch")
OFFICIAL = dict(img_resolution=8, img_channels=3, label_dim=4, model_channels=8, channel_mult=[1, 2], num_blocks=1,
                attn_resolutions=[4], channels_per_head=8, logvar_channels=8)


class EasyDict(dict):
    """dnnlib's."""


class Module(torch.nn.Module):
    """A module whose pickle is an envelope with program text."""

    def __reduce__(self):
        meta = EasyDict(type="class", version=6, module_src="raise SystemExit('this ran')", class_name=type(self).__name__,
                        state=self.__dict__)
        return _reconstruct_persistent_obj, (meta,)


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the envelope was opened")


@pytest.fixture
def official(monkeypatch):
    """The modules that the published pickles name, gone again when the file is read."""
    for name, module, member in (("EasyDict", "dnnlib.util", EasyDict),
                                 ("_reconstruct_persistent_obj", "torch_utils.persistence", _reconstruct_persistent_obj)):
        for part in (module.partition(".")[0], module):
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        setattr(sys.modules[module], name, member)
        monkeypatch.setattr(member, "__module__", module)


def network(weights, options):
    """The weights in a tree of modules."""
    root = Module()
    for key, value in weights.items():
        *path, name = key.split(".")
        here = root
        for part in path:
            if part not in here._modules:
                here.add_module(part, torch.nn.ModuleDict() if part in ("enc", "dec") else Module())
            here = here._modules[part]
        tensor = torch.from_numpy(np.asarray(value, np.float16))
        if name in ("freqs", "phases"):
            here.register_buffer(name, tensor)
        else:
            here.register_parameter(name, torch.nn.Parameter(tensor))
    root._init_kwargs = EasyDict(options)
    return root


def random_weights():
    shapes = edm2.shapes(*edm2.modules(OFFICIAL))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.float32(np.asarray(rng.normal(size=leaf.shape), np.float16)), shapes)
    return params, edm2.revert(params, official_names(params), OFFICIAL["img_resolution"])


FIXED = {
    "model/emb_fourier/freqs": "unet.emb_fourier.freqs", "model/emb_fourier/phases": "unet.emb_fourier.phases",
    "model/emb_noise/weight": "unet.emb_noise.weight", "cond/emb/weight": "unet.emb_label.weight",
    "model/out_gain": "unet.out_gain", "model/out_conv/weight": "unet.out_conv.weight",
    "model/enc_0_conv/weight": "unet.enc.8x8_conv.weight", "uncertainty/fourier/freqs": "logvar_fourier.freqs",
    "uncertainty/fourier/phases": "logvar_fourier.phases", "uncertainty/linear/weight": "logvar_linear.weight",
}
INNER = {
    "conv1/weight": "conv_res0.weight", "conv2/weight": "conv_res1.weight", "skip/weight": "conv_skip.weight",
    "emb/weight": "emb_linear.weight", "qkv/weight": "attn_qkv.weight", "proj/weight": "attn_proj.weight", "emb_gain": "emb_gain",
}


def official_names(params):
    """Official key -> shape of every parameter: the rules read backwards."""
    out = {}
    for path, leaf in rules.flatten_dict(params, sep="/").items():
        name = FIXED.get(path)
        if name is None:
            block, rest = path.removeprefix("model/").split("/", 1)
            half, level, kind = block.split("_", 2)
            side = 8 // 2 ** int(level)
            name = f"unet.{half}.{side}x{side}_{kind}.{INNER[rest]}"
        shape = leaf.shape[::-1] if leaf.ndim < 4 else (*leaf.shape[:1:-1], *leaf.shape[:2])
        out[name] = (*shape, 1, 1) if name.endswith(("conv_skip.weight", "attn_qkv.weight", "attn_proj.weight")) else shape
    return out


def test_a_published_pickle_gives_its_weights_and_options_and_runs_nothing(tmp_path, official, monkeypatch):
    params, weights = random_weights()
    content = EasyDict(ema=network(weights, OFFICIAL), encoder=Module(), dataset_kwargs=EasyDict(path="x"), loss_fn=Module())
    file = tmp_path / "edm2.pkl"
    file.write_bytes(pickle.dumps(content))
    for name in ("dnnlib", "dnnlib.util", "torch_utils", "torch_utils.persistence"):
        monkeypatch.delitem(sys.modules, name)
    found, options = persistent.read(file)
    assert options == OFFICIAL and found.keys() == weights.keys()
    for key, value in weights.items():
        np.testing.assert_array_equal(found[key], value)
    page, loaded = edm2.load(file)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert page["model"]["attend"] == (2,) and page["task"]["forced"]


class Harmful:
    """Would run a command."""

    def __reduce__(self):
        import os

        return os.system, ("echo this ran > ran",)


def test_what_is_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in ({"ema": Harmful()}, {"ema": collections.Counter()}, {"ema": print}):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(ConfigError, match="is refused: it names .*, which is code") as error:
            persistent.read(tmp_path / "x.pkl")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("content", "says"), [
    (b"", "damaged"), (b"no pickle", "refused|damaged"), (pickle.dumps({"ema": 3}), "holds no network"),
    (pickle.dumps([1]), "holds no network"),
])
def test_damaged_and_other_files_are_named(tmp_path, content, says):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(ConfigError, match=f"x.pkl.*({says})"):
        persistent.read(tmp_path / "x.pkl")
    with pytest.raises(ConfigError, match="there is no file"):
        persistent.read(tmp_path / "y.pkl")


def test_a_state_dict_alone_tells_its_options(tmp_path):
    from safetensors.numpy import save_file

    params, weights = random_weights()
    save_file({key: np.array(value, order="C") for key, value in weights.items()}, tmp_path / "x.safetensors")
    _, loaded = edm2.load(tmp_path / "x.safetensors", OFFICIAL)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    read = edm2.options(weights)
    assert read | {"channels_per_head": 8} == OFFICIAL | {"channel_mult_noise": 1, "channel_mult_emb": 2}
    with pytest.raises(ConfigError, match="no state dict of an EDM2 network"):
        edm2.options({"a": np.zeros(2)})
