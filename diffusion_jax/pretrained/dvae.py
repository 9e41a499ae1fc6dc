"""Published discrete VAEs as our networks: OpenAI's (openai/DALL-E) and DALLE-pytorch's.

OpenAI's are two files, encoder.pkl and decoder.pkl, each a pickle of a whole module. Nothing in them is run: of all that such a
pickle may call, only what rebuilds tensors and containers is allowed, and modules become plain trees of their state.
"""
from __future__ import annotations

import collections
import pickle
import re
import tarfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.dvae import DVAE
from diffusion_jax.models.dvae_codebook import CodebookVAE
from diffusion_jax.pretrained import names, rules, torchscript
from diffusion_jax.pretrained.package import CONFIG, WEIGHTS, Package, only
from diffusion_jax.pretrained.persistent import Bare, arrays
from diffusion_jax.pretrained.reader import READERS, content, read, select, unpickled
from diffusion_jax.pretrained.rules import CONV, POINT, SAME, Layout, Rule, layer
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.types import Array, Params

FILES = ("encoder", "decoder")
OPENAI = "diffusion_jax.models.dvae:DVAE"
CODEBOOK_VAE = "diffusion_jax.models.dvae_codebook:CodebookVAE"
ENDS = ("w", "b")
"""What OpenAI's keys of a layer end with."""
BLOCK = r"blocks\.group_(\d)\.block_(\d)"
DECONV = Layout(
    lambda w: w.transpose(2, 3, 0, 1)[::-1, ::-1],
    lambda w, shape: w[::-1, ::-1].transpose(2, 3, 0, 1),
    lambda shape: (*shape[2:], *shape[:2]),
)
"""A transposed convolution (in, out, h, w) <-> the kernel (h, w, in, out) of a convolution over the spread input."""


def table(half: str) -> list[Rule]:
    """OpenAI's keys of one half onto our parameters of it."""
    point, wide = (4, "123") if half == "encoder" else (1, "234")
    first = CONV if half == "encoder" else POINT
    path = rf"{half}/group_\1_block_\2"
    return [
        *layer(r"blocks\.input", f"{half}/input", first, ends=ENDS),
        *layer(rf"{BLOCK}\.id_path", f"{path}/skip", POINT, ends=ENDS),
        *layer(rf"{BLOCK}\.res_path\.conv_({point})", rf"{path}/conv_\3", POINT, ends=ENDS),
        *layer(rf"{BLOCK}\.res_path\.conv_([{wide}])", rf"{path}/conv_\3", CONV, ends=ENDS),
        *layer(r"blocks\.output\.conv", f"{half}/output", POINT, ends=ENDS),
    ]


def named(half: str) -> list[Rule]:
    """`table` for keys that have the name of their half before them."""
    return [rule._replace(key=f"{half}/{rule.key}") for rule in table(half)]


RULES = [rule for half in FILES for rule in named(half)]
"""Keys 'encoder/...' and 'decoder/...' onto the parameters of `DVAE`."""

CODEBOOK = [
    Rule(r"codebook\.weight", "codebook", SAME),
    *layer(r"(\w+)/down_(\d+)", r"\1/down_\2", CONV),
    *layer(r"(\w+)/up_(\d+)", r"\1/up_\2", DECONV),
    *layer(r"(\w+)/(input|output)", r"\1/\2", POINT),
    *layer(r"(\w+)/(block_\d+)/conv_([12])", r"\1/\2/conv_\3", CONV),
    *layer(r"(\w+)/(block_\d+)/conv_(3)", r"\1/\2/conv_\3", POINT),
]
"""Keys of DALLE-pytorch as `codebook_keys` renames them onto the parameters of `CodebookVAE`."""


def options(encoder: Mapping[str, Any], decoder: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `DVAE`, read off the shapes of OpenAI's two state dicts.

    Raises:
      ConfigError: they are no halves of a discrete VAE.
    """
    for half, state_dict in (("encoder", encoder), ("decoder", decoder)):
        if "blocks.input.w" not in state_dict or "blocks.output.conv.w" not in state_dict:
            raise ConfigError(f"this is no state dict of a discrete VAE's {half}: there is no blocks.input.w")
    codes, _, _, _ = encoder["blocks.output.conv.w"].shape
    width, channels, _, _ = encoder["blocks.input.w"].shape
    tops, depth = _groups(encoder, 4)
    ends, decoder_depth = _groups(decoder, 4)
    if decoder["blocks.input.w"].shape[1] != codes:
        raise ConfigError(f"the encoder has {codes} codes and the decoder another number: take files that belong together")
    if len(ends) != len(tops) or decoder["blocks.output.conv.w"].shape[0] != 2 * channels:
        raise ConfigError("the decoder makes images of another size or other channels than the encoder reads: take files that "
                          "belong together")
    plain = dict(
        codes=codes, width=width, mults=tuple(top // width for top in tops), depth=depth,
        init_width=decoder["blocks.input.w"].shape[0], channels=channels,
    )
    own = {"decoder_width": (ends[-1] * width // tops[0], width), "decoder_depth": (decoder_depth, depth)}
    return plain | {name: value for name, (value, usual) in own.items() if value != usual}


def _groups(half: Mapping[str, Any], last: int) -> tuple[list[int], int]:
    """The widths of the groups of one half, by the convolution that ends their blocks, and how many blocks each has."""
    groups = sorted({int(match[1]) for key in half if (match := re.match(r"blocks\.group_(\d+)\.", key))})
    depth = len({match[1] for key in half if (match := re.match(r"blocks\.group_1\.block_(\d+)\.", key))})
    ends = [f"blocks.group_{i}.block_1.res_path.conv_{last}.w" for i in groups]
    if not groups or not all(end in half for end in ends):
        raise ConfigError("this is no state dict of a discrete VAE's half: its groups of blocks are not all there")
    return [half[end].shape[0] for end in ends], depth


def shapes(model: DVAE | CodebookVAE) -> Params:
    """Shapes and types of the network's parameters; computes nothing."""
    image = jnp.zeros((1, model.factor, model.factor, model.channels))
    return shapes_of(lambda: model.init(jax.random.key(0), image))["params"]


def convert(encoder: rules.Weights, decoder: rules.Weights, model: DVAE) -> Params:
    """OpenAI's two state dicts as the parameters of `DVAE`.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    together = {f"{half}/{key}": w for half, part in zip(FILES, (encoder, decoder), strict=True) for key, w in part.items()}
    return rules.convert(together, RULES, shapes(model))


def revert(params: Params, wanted: Mapping[str, rules.Shape]) -> dict[str, Array]:
    """Parameters as OpenAI's keys, 'encoder/...' and 'decoder/...', of the given shapes."""
    return rules.revert(params, RULES, wanted)


def codebook_model(official: Mapping[str, Any]) -> CodebookVAE:
    """The network of the options of DALLE-pytorch's constructor."""
    defaults = {"num_tokens": 512, "codebook_dim": 512, "hidden_dim": 64, "num_layers": 3, "num_resnet_blocks": 0, "channels": 3}
    return CodebookVAE(*(official.get(key, default) for key, default in defaults.items()))


def codebook_keys(model: CodebookVAE) -> dict[str, str]:
    """Beginning of a key of DALLE-pytorch, which counts modules, -> ours, which names them."""
    downs = [f"down_{i}" for i in range(model.layers)]
    ups = [f"up_{i}" for i in range(model.layers)]
    blocks = [f"block_{i}" for i in range(model.blocks)]
    encoder = [*downs, *blocks, "output"]
    decoder = [*(["input"] if blocks else []), *blocks, *ups, "output"]
    return {f"{half}.{i}": f"{half}/{name}" for half, names in (("encoder", encoder), ("decoder", decoder))
            for i, name in enumerate(names)}


def codebook_name(key: str, names: Mapping[str, str]) -> str:
    """A key of DALLE-pytorch in the form that `CODEBOOK` reads."""
    half, _, rest = key.partition(".")
    number, _, rest = rest.partition(".")
    name = names.get(f"{half}.{number}")
    if name is None:
        return key
    inner = re.fullmatch(r"net\.(\d)\.(\w+)", rest)
    return f"{name}/conv_{int(inner[1]) // 2 + 1}.{inner[2]}" if inner else f"{name}.{rest.removeprefix('0.')}"


def convert_codebook(state_dict: rules.Weights, model: CodebookVAE) -> Params:
    """DALLE-pytorch's state dict as the parameters of `CodebookVAE`.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    names = codebook_keys(model)
    return rules.convert({codebook_name(key, names): w for key, w in state_dict.items()}, CODEBOOK, shapes(model))


def revert_codebook(params: Params, model: CodebookVAE, wanted: Mapping[str, rules.Shape]) -> dict[str, Array]:
    """Parameters, or their gradients, as DALLE-pytorch's state dict of the given shapes."""
    keys = codebook_keys(model)
    names = {codebook_name(key, keys): key for key in wanted}
    return rules.revert_renamed(params, CODEBOOK, wanted, names)


class Unpickler(pickle.Unpickler):
    """Calls nothing but what is named here."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in, or the harmless original, of a global.

        Raises:
          UnpicklingError: everything else.
        """
        import torch

        plain = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("builtins", "set"): set, ("__builtin__", "set"): set,
            ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
            ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
            ("torch", "device"): str,
        }
        if module.startswith(("torch.nn.modules.", "dall_e.")):
            return Bare
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) not in plain:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is code")
        return plain[module, name]


def read_module(path: str | Path) -> dict[str, np.ndarray]:
    """The state dict of a pickled module, float16 widened to float32; other weights files as `reader.read` has them.

    Raises:
      ConfigError: there is no such file, it is damaged, it calls anything but tensors and containers, or torch is not installed.
    """
    path = Path(path)
    if path.suffix in READERS:
        return read(path)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    # torch opens both by itself, before it asks for the reader below: the one runs its programs, the other unpacks files.
    if torchscript.is_torchscript(path) or tarfile.is_tarfile(path):
        raise ConfigError(f"{path} is refused: it is no pickle of a module, but an archive of programs or files")
    reader: Any = types.ModuleType("reader")                    # what torch.load takes in place of the module pickle
    reader.Unpickler, reader.load = Unpickler, lambda file, **options: Unpickler(file, **options).load()
    module = unpickled(path, lambda torch: torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False))
    if not isinstance(module, Bare) or "_modules" not in module.state:
        raise ConfigError(f"{path} holds no module")
    return dict(arrays(module))


def export(
    page: Mapping[str, Any], params: Params, shapes: Mapping[str, rules.Shape]
) -> dict[str, Array]:
    """A run's parameters as an official state dict of the given shapes; the inverse of `load`.

    OpenAI's keys are those of both files, 'encoder/...' and 'decoder/...'.
    """
    if page["model"]["name"] == OPENAI:
        return revert(params["model"], shapes)
    return revert_codebook(params["model"], build(page["model"]), shapes)


RANKS = {r".*\.w": 4, r".*\.weight": 4}
CODE = """import json
from safetensors.torch import load_file
from dall_e import Decoder, Encoder                      # github.com/openai/DALL-E
options = json.load(open("FOLDER/config.json"))
encoder, decoder = Encoder(**options["encoder"]), Decoder(**options["decoder"])
encoder.load_state_dict(load_file("FOLDER/encoder.safetensors"))
decoder.load_state_dict(load_file("FOLDER/decoder.safetensors"))"""
CODEBOOK_CODE = """import json
from safetensors.torch import load_file
from dalle_pytorch import DiscreteVAE                    # github.com/lucidrains/DALLE-pytorch
vae = DiscreteVAE(**json.load(open("FOLDER/config.json")))
vae.load_state_dict(load_file("FOLDER/model.safetensors"))"""


def write(page: Mapping[str, Any], params: Params) -> Package:
    """A run for the official code: OpenAI's two files, or that of DALLE-pytorch, and the options of the constructors.

    Raises:
      ConfigError: the official network has no such option; the line names it.
    """
    model = build(page["model"])
    if isinstance(model, CodebookVAE):
        return _write_codebook(page, params, model)
    title = "OpenAI's discrete VAE"
    only(title, model, mults=(1, 2, 4, 8))
    weights = revert(params["model"], names.shapes(params["model"], RULES, RANKS))
    files: dict[str, Any] = {}
    for half in FILES:
        files[f"{half}.safetensors"] = {
            key.removeprefix(f"{half}/"): value for key, value in weights.items() if key.startswith(f"{half}/")
        }
    files[CONFIG] = {
        "image_size": page["task"]["shape"][0],
        "encoder": dict(n_hid=model.width, n_blk_per_group=model.depth, input_channels=model.channels, vocab_size=model.codes),
        "decoder": dict(n_init=model.init_width, n_hid=model.decoder_width or model.width, output_channels=model.channels,
                        n_blk_per_group=model.decoder_depth or model.depth, vocab_size=model.codes),
    }
    return Package(files, title, CODE)


def _write_codebook(page: Mapping[str, Any], params: Params, model: CodebookVAE) -> Package:
    """`write` for DALLE-pytorch."""
    renamed = names.shapes(params["model"], CODEBOOK, RANKS, special={"codebook.weight": (model.codes, model.code_width)})
    halves = {ours: official for official, ours in codebook_keys(model).items()}
    keys = {_codebook_key(key, halves): shape for key, shape in renamed.items()}
    options = dict(
        image_size=page["task"]["shape"][0], num_tokens=model.codes, codebook_dim=model.code_width, num_layers=model.layers,
        num_resnet_blocks=model.blocks, hidden_dim=model.width, channels=model.channels,
        smooth_l1_loss=page["task"].get("reconstruction") == "smooth_l1",
        # (means, deviations) that leave pictures in [-1, 1] as they are; not every version takes None.
        normalization=[[0.0] * model.channels, [1.0] * model.channels],
    )
    weights = revert_codebook(params["model"], model, keys)
    return Package({WEIGHTS: weights, CONFIG: options}, "DALLE-pytorch's discrete VAE", CODEBOOK_CODE)


def _codebook_key(key: str, halves: Mapping[str, str]) -> str:
    """The inverse of `codebook_name`."""
    match = re.fullmatch(r"(\w+/\w+?)(?:/conv_(\d))?\.(\w+)", key)
    if match is None:
        return key
    name, conv, end = match.groups()
    if conv:
        return f"{halves[name]}.net.{2 * (int(conv) - 1)}.{end}"
    # What an activation follows is in a list of its own.
    inner = ".0" if re.search(r"/(?:down|up)_\d+$", name) else ""
    return f"{halves[name]}{inner}.{end}"


def load(path: str | Path, official: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Params]:
    """Published weights as (config, params).

    Args:
      path: the folder with encoder.pkl and decoder.pkl (or another suffix of `reader.read`), or a file of DALLE-pytorch.
      official: the options of DALLE-pytorch's constructor, for a file of it that is without its hparams; OpenAI's files tell
        all but the image size, which is 256 unless given here as image_size.

    Raises:
      ConfigError: see `read_module`, `options` and `convert`; a folder without the two files.
    """
    path = Path(path)
    official = dict(official or {})
    if not path.is_dir():
        return _load_codebook(path, official)
    halves = [read_module(_half(path, half)) for half in FILES]
    config = options(*halves)
    params = convert(*halves, DVAE(**config))
    size = official.get("image_size", 256)
    return page(dict(name=OPENAI, **config), size, "logit_laplace"), {"model": params}


def _load_codebook(path: Path, official: Mapping[str, Any]) -> tuple[dict[str, Any], Params]:
    """`load` of a file of DALLE-pytorch."""
    file = content(path)
    official = {**file.get("hparams", {}), **official}
    model = codebook_model(official)
    config = dict(
        name=CODEBOOK_VAE, codes=model.codes, code_width=model.code_width, width=model.width,
        layers=model.layers, blocks=model.blocks, channels=model.channels,
    )
    loss = "smooth_l1" if official.get("smooth_l1_loss") else "l2"
    params = convert_codebook(select(file, "weights", path), model)
    return page(config, official.get("image_size", 256), loss), {"model": params}


def _half(folder: Path, half: str) -> Path:
    """The file of one half in a folder.

    Raises:
      ConfigError: there is none.
    """
    suffixes = (".pkl", *READERS)
    files = sorted(file for file in folder.glob(f"{half}.*") if file.suffix in suffixes)
    if not files:
        raise ConfigError(f"{folder} holds no {half}.pkl: give the folder with encoder.pkl and decoder.pkl")
    return files[0]


def page(model: Mapping[str, Any], size: int, reconstruction: str) -> dict[str, Any]:
    """The sections model and task of a page."""
    task = dict(name="diffusion_jax.tasks.dvae:DiscreteVAE", shape=(size, size, model["channels"]), reconstruction=reconstruction)
    return dict(model=dict(model), task=task)
