"""The tiny autoencoders of madebyollin/taesd (TAESD, TAESDXL, TAESD3, TAEF1, TAEF2) as our TAE.

Two layouts of the same weights are read. The authors' has two files, taesd_encoder.pth and taesd_decoder.pth, whose keys count
the modules of a row (4.conv.0.weight), those without weights too. That of diffusers' AutoencoderTiny is one file
(encoder.layers.4.conv.0.weight), and its decoder does not count the tanh in front. Both are brought to the first, with the half
before each key (encoder.4.conv.0.weight), and the modules renamed as ours, so that one table serves both.

The latents are those that a diffusion model sees, and which model's that is the files' name alone says (`IMITATED`).
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build, number, unknown
from diffusion_jax.models.tae import TAE
from diffusion_jax.pretrained import folder, names, rules
from diffusion_jax.pretrained.package import CONFIG, Package, Page, only, refuse
from diffusion_jax.pretrained.reader import READERS, read
from diffusion_jax.pretrained.rules import CONV, POINT, Rule, layer, norm
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.types import Array, Params

NAME = "diffusion_jax.models.tae:TAE"
HALVES = ("encoder", "decoder")
SCALE, SHIFT = "scaling_factor", "shift_factor"
"""Of diffusers' options, and of --official."""


class Latents(NamedTuple):
    """How a diffusion model sees what its autoencoder makes: (z - shift) scale."""

    scale: float
    shift: float = 0.0


IMITATED = {
    "taesd": Latents(0.18215), "taesdxl": Latents(0.13025), "taesd3": Latents(1.5305, 0.0609), "taef1": Latents(0.3611, 0.1159),
    "taef2": Latents(1.0),
}
"""By the name of the files: of Stable Diffusion 1 and 2, XL, 3, of FLUX.1; FLUX.2 has no single scale, and its latents stay."""
CHANNELS_OF_SD = 4
"""Of the latents of Stable Diffusion 1 and 2."""


def _table() -> list[Rule]:
    block = r"(\w+)/(\w+)"
    table = layer(r"(\w+)/(stem|final_conv|(?:down|up)_\d+_resize)", r"\1/\2", CONV)
    for i in (1, 2, 3):
        table += layer(rf"{block}\.conv\.{2 * i - 2}", rf"\1/\2/conv{i}", CONV)
    return [
        *table,
        Rule(rf"{block}\.pool\.0\.weight", r"\1/\2/pool_in/kernel", POINT),
        *norm(rf"{block}\.pool\.1", r"\1/\2/pool_norm"),
        Rule(rf"{block}\.pool\.3\.weight", r"\1/\2/pool_out/kernel", POINT),
    ]


RULES = _table()
RANKS = {r".*\.pool\.[03]\.weight": 4}


def modules(levels: int, depth: int) -> dict[str, str]:
    """The modules with weights of a network: 'encoder.3' -> 'encoder/down_1_res_0'."""
    encoder = ["stem", "down_0_res_0"]
    decoder = ["tanh", "stem", "relu"]
    for level in range(1, levels + 1):
        encoder += [f"down_{level - 1}_resize", *(f"down_{level}_res_{i}" for i in range(depth))]
    for level in range(levels, 0, -1):
        decoder += [*(f"up_{level}_res_{i}" for i in range(depth)), "double", f"up_{level}_resize"]
    rows = {"encoder": [*encoder, "final_conv"], "decoder": [*decoder, "up_0_res_0", "final_conv"]}
    without = ("tanh", "relu", "double")
    return {f"{half}.{i}": f"{half}/{name}" for half in HALVES for i, name in enumerate(rows[half]) if name not in without}


def authors(key: str) -> str:
    """A key of diffusers under the authors' name; one of theirs stays as it is."""
    match = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", key)
    if match is None:
        return key
    half, index, rest = match.groups()
    return f"{half}.{int(index) + (half == 'decoder')}.{rest}"


def diffusers_name(key: str) -> str:
    """The inverse of `authors`."""
    half, index, rest = key.split(".", 2)
    return f"{half}.layers.{int(index) - (half == 'decoder')}.{rest}"


def _module(key: str) -> str:
    """'encoder.4' of 'encoder.4.conv.0.weight'."""
    return ".".join(key.split(".")[:2])


def published(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The network's options for `TAE`, read off a state dict (of arrays or shapes) in the authors' names.

    Raises:
      ConfigError: it is no such autoencoder, or its halves are of two.
    """
    plain = sorted(int(match[1]) for key in state_dict if (match := re.fullmatch(r"encoder\.(\d+)\.weight", key)))
    levels = len(plain) - 2
    depth = plain[2] - plain[1] - 1 if levels > 0 else 0
    # No more blocks than keys, whatever numbers these hold: the names of all of them are made to be compared.
    if levels < 1 or depth > len(state_dict) or {_module(key) for key in state_dict} != set(modules(levels, depth)):
        raise ConfigError("this is no encoder and decoder of TAESD, TAESDXL, TAESD3, TAEF1 or TAEF2: take the files of one of "
                          "these, which have other layers")
    width, channels = state_dict["encoder.0.weight"].shape[:2]
    latent = state_dict[f"encoder.{plain[-1]}.weight"].shape[0]
    if state_dict["decoder.1.weight"].shape[1] != latent:
        raise ConfigError(f"the encoder makes latents of {latent} channels, the decoder reads "
                          f"{state_dict['decoder.1.weight'].shape[1]}: take files that belong together")
    pool = f"encoder.{plain[-1] - 1}.pool.0.weight" in state_dict
    return dict(channels=channels, latent=latent, width=width, levels=levels, depth=depth, pool=pool)


def shapes(model: TAE) -> Params:
    """Shapes and types of the parameters; computes nothing."""
    side = model.factor
    return shapes_of(model.init, jax.random.key(0), jnp.zeros((1, side, side, model.channels)))["params"]


def convert(state_dict: rules.Weights, model: TAE) -> Params:
    """A state dict of either layout, the authors' with 'encoder.' and 'decoder.' before its keys, as our parameters.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    ours = modules(model.levels, model.depth)
    return rules.convert({_renamed(authors(key), ours): w for key, w in state_dict.items()}, RULES, shapes(model))


def _renamed(key: str, ours: Mapping[str, str]) -> str:
    """'encoder/down_1_res_0.conv.0.weight' of 'encoder.3.conv.0.weight'."""
    module = _module(key)
    return f"{ours.get(module, module)}{key.removeprefix(module)}"


# From files -----------------------------------------------------------------------------------------------------------------


def load(path: str | Path, official: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Params]:
    """A published tiny autoencoder as (config, params).

    Args:
      path: a folder with taef2_encoder.pth and taef2_decoder.pth or others, in any format of `reader.read`; one of these two,
        where a folder holds several; a file or a folder of diffusers' AutoencoderTiny.
      official: {'scaling_factor', 'shift_factor': how the diffusion model sees the latents of the autoencoder that it imitates},
        where the files' name does not say it. Four channels of no name are Stable Diffusion's.

    Returns:
      The sections model and task of a page, and {'model': the parameters}.

    Raises:
      ConfigError: see `read`, `published` and `convert`; a folder without the two files, or with several such pairs.
    """
    state_dict, name = _read(Path(path))
    spec = published(state_dict)
    scale, shift = _latents(name, spec["latent"], official or {})
    params = convert(state_dict, TAE(**spec))
    task = dict(name="diffusion_jax.tasks.autoencoder:Autoencoder", shape=(256, 256, spec["channels"]), scale=scale, shift=shift)
    return dict(model=dict(name=NAME, **spec, scale=scale, shift=shift), task=task), {"model": params}


def _read(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """(the weights in the authors' names, the name of the files: 'taef2', or '')."""
    pair = _pair(path)
    if pair:
        halves = zip(HALVES, map(read, pair), strict=True)
        return {f"{half}.{key}": value for half, part in halves for key, value in part.items()}, _name(pair[0]) or ""
    if path.is_dir():
        folder.checked(folder.options(path), PLAIN, READ, "the autoencoder's config.json")
        weights, name = folder.weights(path), ""
    else:
        weights, name = read(path), path.stem
    return {authors(key): value for key, value in weights.items()}, name


def _pair(path: Path) -> tuple[Path, Path] | None:
    """The files of the encoder and of the decoder in a folder, or of which one is given; None for diffusers' one file.

    Raises:
      ConfigError: one of them is not there, or the folder holds several.
    """
    if path.is_dir():
        names = {name for file in path.iterdir() if (name := _name(file)) is not None}
        if len(names) > 1:
            raise ConfigError(f"{path} holds the files of {', '.join(sorted(names))}: give the encoder's of one as --source")
        if not names and (path / CONFIG).is_file():
            return None
        where, name = path, next(iter(names), "taef2")
    else:
        where, name = path.parent, _name(path)
    return None if name is None else (_half(where, name, "encoder"), _half(where, name, "decoder"))


def _name(file: Path) -> str | None:
    """'taef2' of taef2_encoder.pth, '' of encoder.pth; None of a file that is no half."""
    match = re.fullmatch(r"(?:(.+)_)?(?:encoder|decoder)", file.stem)
    return (match[1] or "") if match and file.suffix in READERS else None


def _half(where: Path, name: str, half: str) -> Path:
    """The file of one half, .safetensors before the others."""
    stem = f"{name}_{half}" if name else half
    file = next((file for suffix in READERS if (file := where / f"{stem}{suffix}").is_file()), None)
    if file is None:
        raise ConfigError(f"{where} holds no {stem}.pth or .safetensors: get both files of a tiny autoencoder, encoder and "
                          "decoder")
    return file


def _latents(name: str, channels: int, official: Mapping[str, Any]) -> Latents:
    """How a diffusion model sees the latents: as --official says, else by the name of the files, else by their channels."""
    for key in official:
        if key not in (SCALE, SHIFT):
            raise unknown("option of --official for system tae", str(key), (SCALE, SHIFT))
    usual = IMITATED.get(name.lower(), IMITATED["taesd"] if channels == CHANNELS_OF_SD else Latents(1.0))
    scale, shift = (number(key, official.get(key, value)) for key, value in zip((SCALE, SHIFT), usual, strict=True))
    if not scale:
        raise ConfigError(f"{SCALE} of --official divides latents: give another number than 0")
    return Latents(scale, shift)


PLAIN = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2, SCALE: 1.0, SHIFT: 0.0}
"""Options of diffusers' AutoencoderTiny with their only value here."""
READ = (
    "in_channels", "out_channels", "encoder_block_out_channels", "decoder_block_out_channels", "block_out_channels",
    "latent_channels", "num_encoder_blocks", "num_decoder_blocks", "latent_magnitude", "latent_shift", "force_upcast",
)
"""Options that the shapes of the weights say, and three of half precision and of latents stored in bytes."""


# To files -------------------------------------------------------------------------------------------------------------------

CODE = """from safetensors.torch import load_file
from taesd import Decoder, Encoder                       # github.com/madebyollin/taesd
encoder, decoder = (half({latent}, use_midblock_gn={pool}) for half in (Encoder, Decoder))
encoder.load_state_dict(load_file("FOLDER/encoder.safetensors"))
decoder.load_state_dict(load_file("FOLDER/decoder.safetensors"))"""
HF_CODE = """from diffusers import AutoencoderTiny
vae = AutoencoderTiny.from_pretrained("FOLDER")"""
HF_WEIGHTS = "diffusion_pytorch_model.safetensors"
CHANNELS = ("Its latents are the network's own: the scale and the shift that this run has for them, as measured by mode encode, "
            "are in none of these files.")


def export(
    page: Mapping[str, Any], params: Params, shapes: Mapping[str, rules.Shape]
) -> dict[str, Array]:
    """A run's parameters as a state dict of the given shapes, in the layouts of `convert`; the inverse of `load`."""
    model = build(page["model"])
    ours = modules(model.levels, model.depth)
    renamed = {_renamed(authors(key), ours): key for key in shapes}
    return rules.revert_renamed(params["model"], RULES, shapes, renamed)


def official_shapes(model: TAE, params: Params) -> dict[str, rules.Shape]:
    """The authors' key, with its half before it -> shape, for the parameters of an autoencoder."""
    places = {name: place for place, name in modules(model.levels, model.depth).items()}
    named = names.shapes(params, RULES, RANKS)
    return {f"{places[key.partition('.')[0]]}.{key.partition('.')[2]}": shape for key, shape in named.items()}


def write(page: Page, params: Params) -> Package:
    """A run for the authors' code: the state dicts of the two halves, and how a diffusion model sees the latents.

    Raises:
      ConfigError: the official network has no such option; the line names it.
    """
    title = "the authors' TAESD"
    model = build(page["model"])
    only(title, model, channels=3, width=64, levels=3, depth=3)
    weights = _weights(title, page, params, model)
    files: dict[str, Any] = {
        f"{half}.safetensors": {key.removeprefix(f"{half}."): w for key, w in weights.items() if key.startswith(f"{half}.")}
        for half in HALVES
    }
    files[CONFIG] = {SCALE: model.scale, SHIFT: model.shift}
    return Package(files, title, CODE.format(latent=model.latent, pool=model.pool), notes=_notes(page, model))


def diffusers(page: Page, params: Params, class_names: tuple[str, ...] = ()) -> Package:
    """A run as a folder of diffusers' AutoencoderTiny.

    Raises:
      ConfigError: diffusers' network has no such option; the line names it.
    """
    title = "diffusers' AutoencoderTiny"
    model = build(page["model"])
    only(title, model, pool=False)
    weights = _weights(title, page, params, model)
    widths = [model.width] * (model.levels + 1)
    depths = [model.depth] * model.levels
    config = dict(
        _class_name="AutoencoderTiny", in_channels=model.channels, out_channels=model.channels, latent_channels=model.latent,
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, num_encoder_blocks=[1, *depths],
        num_decoder_blocks=[*depths, 1], **PLAIN,
    )
    files = {CONFIG: config, HF_WEIGHTS: {diffusers_name(key): w for key, w in weights.items()}}
    return Package(files, title, HF_CODE, "diffusers", _notes(page, model))


def _weights(title: str, page: Page, params: Params, model: TAE) -> dict[str, Array]:
    """The state dict in the authors' names, with the half before each key."""
    refuse(title, {"takes -1 for black (task.black)": page["task"].get("black", -1.0) != -1})
    return export(page, params, official_shapes(model, params["model"]))


def _notes(page: Page, model: TAE) -> tuple[str, ...]:
    """A sentence where a run's latents are not the network's own."""
    task = page["task"]
    is_networks = (task.get("scale", 1.0), task.get("shift", 0.0)) == (model.scale, model.shift)
    return () if is_networks else (CHANNELS,)
