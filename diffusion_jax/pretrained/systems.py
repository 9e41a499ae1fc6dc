"""The systems whose published weights can be had here: the one table of them.

A system is one file of this folder. Its `load` turns published weights into (page, params); its
`export` turns the parameters of a run into the official weights again. Nothing of a system is
imported before it is used, so reading this table costs nothing: the flags of mode import_weights,
their help, their errors and README's table come from it. `write` and `diffusers` make whole
folders of a run, for its official code and for diffusers or transformers.

To add a system, write its file and add one entry to `SYSTEMS`.
"""
from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.types import Array, Params

Source = str | os.PathLike[str]
HERE = "diffusion_jax.pretrained"
SUFFIXES = ".safetensors, .npz, .pt, .pth, .ckpt or .bin"
"""Of the files that `reader.read` reads."""


DTYPES = ("float32", "bfloat16")
"""What weights are kept in."""
MALFORMED = (AttributeError, ArithmeticError, LookupError, TypeError, ValueError)
"""What comes of options and shapes of other kinds than they are published with."""


class System(NamedTuple):
    """One system.

    Attributes:
      name: of --system.
      weights: whose weights, and of which networks.
      source: what --source takes.
      official: what the JSON file of --official may hold; empty where the weights say everything.
      load: 'module:function' of (source, options of --official or None) -> (page, params).
      export: 'module:function' of (page, params, shapes) -> official weights.
      write: 'module:function' of (page, params) -> `package.Package` for the official code.
      diffusers: 'module:function' of (page, params, class names) -> the same for diffusers or
        transformers; None where neither has a class for it.
      latents: 'module:NAME' of how a model of latents whose files have no first stage uses Stable
        Diffusion's; None for the systems that bring their own or need none.
      halves: whether its weights may be kept in bfloat16, as the large models are published.
    """

    name: str
    weights: str
    source: str
    official: str
    load: str
    export: str
    write: str
    diffusers: str | None = None
    latents: str | None = None
    halves: bool = False


_TABLE = (
    System(
        name="adm",
        weights="ADM (openai/guided-diffusion), its upsamplers and noisy classifiers",
        source="a file",
        official="the constructor's options, image_size and noise_schedule of unpublished networks",
        load=f"{HERE}.adm:load",
        export=f"{HERE}.adm:export",
        write=f"{HERE}.adm_export:write",
    ),
    System(
        name="clip",
        weights="CLIPs of OpenAI, OpenCLIP and transformers",
        source="a file, and beside it its config.json if it is not OpenAI's",
        official="what config.json says, where none lies beside the file",
        load=f"{HERE}.clip:load",
        export=f"{HERE}.clip:export",
        write=f"{HERE}.clip_export:write",
        diffusers=f"{HERE}.clip_export:diffusers",
    ),
    System(
        name="dalle",
        weights="the transformers of ru-DALL-E and minDALL-E",
        source="a file",
        official="its heads, and to draw from prompts first_stage, a run's folder, and tokenizer",
        load=f"{HERE}.dalle:load",
        export=f"{HERE}.dalle:export",
        write=f"{HERE}.dalle:write",
    ),
    System(
        name="diffit",
        weights="DiffiT for latents (NVlabs/DiffiT)",
        source="a file",
        official="for unpublished sizes the constructor's options",
        load=f"{HERE}.diffit:load",
        export=f"{HERE}.diffit:export",
        write=f"{HERE}.diffit:write",
        latents=f"{HERE}.dit:LATENTS",
    ),
    System(
        name="dit",
        weights="DiT (facebookresearch/DiT)",
        source="a file",
        official="for unpublished sizes the constructor's options",
        load=f"{HERE}.dit:load",
        export=f"{HERE}.dit:export",
        write=f"{HERE}.dit:write",
        diffusers=f"{HERE}.dit_export:diffusers",
        latents=f"{HERE}.dit:LATENTS",
    ),
    System(
        name="dvae",
        weights="discrete VAEs of OpenAI's DALL-E and of DALLE-pytorch",
        source="the folder of encoder.pkl and decoder.pkl, or a file",
        official="image_size, and the constructor's options of DALLE-pytorch",
        load=f"{HERE}.dvae:load",
        export=f"{HERE}.dvae:export",
        write=f"{HERE}.dvae:write",
    ),
    System(
        name="edm2",
        weights="EDM2 (NVlabs/edm2)",
        source="a published .pkl, or a file of its state dict",
        official="the constructor's options, for a bare state dict that is not as published",
        load=f"{HERE}.edm2:load",
        export=f"{HERE}.edm2:export",
        write=f"{HERE}.edm2:write",
        latents=f"{HERE}.edm2:LATENTS",
    ),
    System(
        name="glide",
        weights="GLIDE (openai/glide-text2im) and its noised CLIP",
        source="a file, of the noised CLIP either of the two",
        official="merges, the file vocab.bpe, to read prompts, and options of unpublished networks",
        load=f"{HERE}.glide:load",
        export=f"{HERE}.glide:export",
        write=f"{HERE}.glide_export:write",
    ),
    System(
        name="karlo",
        weights="Karlo (kakaobrain/karlo), and unCLIPs of diffusers in its layout",
        source="the folder of its five files, or of diffusers",
        official="of its files prior, decoder and sr, the hparams of unpublished networks, size, clip and unit",
        load=f"{HERE}.karlo:load",
        export=f"{HERE}.karlo_export:export",
        write=f"{HERE}.karlo_export:write",
        diffusers=f"{HERE}.karlo_hf_export:diffusers",
    ),
    System(
        name="perceptual",
        weights="LPIPS with VGG-16 or AlexNet",
        source="vgg or alex of the extra lpips, two files with a comma, or one",
        official="",
        load=f"{HERE}.perceptual:load",
        export=f"{HERE}.perceptual:export",
        write=f"{HERE}.perceptual:write",
    ),
    System(
        name="sd",
        weights="Stable Diffusion 1 and 2, and the models of latent diffusion",
        source="a file of CompVis, or a folder of diffusers",
        official="params of CompVis's yaml, of Stable Diffusion 2 parameterization and image_size, "
        "of a folder scheduler, options in place of its own",
        load=f"{HERE}.sd:load",
        export=f"{HERE}.sd_export:export",
        write=f"{HERE}.sd_export:write",
        diffusers=f"{HERE}.sd_export:diffusers",
        halves=True,
    ),
    System(
        name="sd3",
        weights="Stable Diffusion 3 and 3.5, medium and large",
        source="a file of Stability AI, or a folder of diffusers",
        official="scheduler, options in place of its own, t5, false to leave it out, pieces, its "
        "spiece.model, of a file clip_l, clip_g and t5xxl, files that it does not hold",
        load=f"{HERE}.sd3:load",
        export=f"{HERE}.sd3_export:export",
        write=f"{HERE}.sd3_export:write",
        diffusers=f"{HERE}.sd3_export:diffusers",
        halves=True,
    ),
    System(
        name="sdxl",
        weights="Stable Diffusion XL, its base and its refiner",
        source="a file of Stability AI, or a folder of diffusers",
        official="scheduler, options in place of its own, of a file that was not published "
        "num_head_channels, image_size and heads",
        load=f"{HERE}.sdxl:load",
        export=f"{HERE}.sdxl_export:export",
        write=f"{HERE}.sdxl_export:write",
        diffusers=f"{HERE}.sdxl_export:diffusers",
        halves=True,
    ),
    System(
        name="tae",
        weights="TAESD, TAESDXL, TAESD3, TAEF1, TAEF2 (madebyollin/taesd)",
        source="the folder of its two files, one of them, or of diffusers",
        official="scaling_factor and shift_factor, of the latents that it imitates",
        load=f"{HERE}.tae:load",
        export=f"{HERE}.tae:export",
        write=f"{HERE}.tae:write",
        diffusers=f"{HERE}.tae:diffusers",
    ),
    System(
        name="vae",
        weights="first stages of latent diffusion, Stable Diffusion 1 to 3, FLUX",
        source="a file of either layout, or a folder of diffusers",
        official="scaling_factor and shift_factor, of the latents",
        load=f"{HERE}.first_stage:load",
        export=f"{HERE}.first_stage:export",
        write=f"{HERE}.vae_export:write",
        diffusers=f"{HERE}.vae_export:diffusers",
    ),
)
SYSTEMS: dict[str, System] = {system.name: system for system in _TABLE}
"""Name -> system."""
WITH_LATENTS = tuple(system.name for system in _TABLE if system.latents is not None)
"""The systems of latents whose files have no first stage."""
HALVES = tuple(system.name for system in _TABLE if system.halves)
"""The systems whose weights may be kept in bfloat16."""


def _listed(field: str) -> str:
    """A field of all systems that say something there, a line each: 'adm, dit: a file', ..."""
    names: dict[str, list[str]] = {}
    # Systems that say the same share a line: half of them take "a file".
    for system in _TABLE:
        names.setdefault(getattr(system, field), []).append(system.name)
    lines = [f"{', '.join(group)}: {phrase}" for phrase, group in names.items() if phrase]
    return "".join(f"\n    {line}" for line in lines)


# The help of the flags of mode import_weights.
SYSTEM_HELP = f"Whose weights to import{_listed('weights')}"
SOURCE_HELP = f"Where the weights are; a file is {SUFFIXES}{_listed('source')}"
OFFICIAL_HELP = f"A JSON file of what the weights do not say{_listed('official')}"
FIRST_STAGE_HELP = (
    f"Folder of an imported autoencoder (system vae or tae) for the latents of {', '.join(WITH_LATENTS)}"
)


DTYPE_HELP = (
    "What weights are kept in, float32 or bfloat16, which takes half the room: for the large models "
    f"of {', '.join(HALVES)}"
)


def find(name: str) -> System:
    """The system of a name.

    Raises:
      ConfigError: there is none; names the nearest.
    """
    if name not in SYSTEMS:
        raise unknown("system", name, SYSTEMS)
    return SYSTEMS[name]


def load(
    name: str, source: Source, official: Source | None = None, dtype: str = "float32"
) -> tuple[dict[str, Any], Params]:
    """Published weights as (page, params).

    Args:
      name: of the system.
      source: see `System.source`.
      official: a JSON file, see `System.official`.
      dtype: that weights of floating point are kept in, of `DTYPES`.

    Returns:
      The sections of a page (model, task and, where they are known, data and sample), and the
      parameters: model, cond ..., and first_stage where the weights hold one.

    Raises:
      ConfigError: an unknown system, options that nobody reads, or what the system's `load`
        refuses; the line says what to do.

    Example:
      page, params = load('dit', 'DiT-XL-2-256x256.pt')
    """
    system = find(name)
    if official is not None and not system.official:
        raise ConfigError(f"--official is not for {name}: its weights say everything")
    check_dtype(system, dtype)
    options = None if official is None else _read_options(Path(official))
    memory = importlib.import_module(f"{HERE}.memory")  # late, as `resolve`
    try:
        with memory.stored_in(dtype):
            return resolve(system.load)(source, options)
    except KeyError as error:  # of a state dict or of the options, both from elsewhere
        files = source if official is None else f"--official {official}, or in {source}"
        missing = error.args[0]
        raise ConfigError(f"there is no {missing!r} in {files}: system {name} needs it") from error
    except MALFORMED as error:
        if isinstance(error, ConfigError):
            raise
        says = str(error).partition("\n")[0]
        raise ConfigError(
            f"{source} is not as system {name} has it ({type(error).__name__}: {says}): "
            "get it again, or look at its options"
        ) from error


def check_dtype(system: System, dtype: str) -> None:
    """Raises ConfigError for a type that the weights of a system are not kept in."""
    if dtype not in DTYPES:
        raise unknown("type of weights", dtype, DTYPES)
    if dtype != DTYPES[0] and not system.halves:
        raise ConfigError(
            f"--dtype {dtype} is for the large models of {', '.join(HALVES)}: those of {system.name} "
            "are kept in float32, leave it out"
        )


def export(
    name: str, page: Mapping[str, Any], params: Params, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    """The parameters of a run as official weights: the inverse of `load`.

    Args:
      name: of the system that the run was imported from, or built like.
      page: the run's.
      params: the run's, without those of a frozen first stage.
      shapes: official key -> shape, of the published file or of any with the same network. A run
        does not tell them: the layouts of one system differ in their keys and their shapes.

    Returns:
      Official key -> array, for the keys of `shapes`.

    Raises:
      ConfigError: the parameters do not fit the keys, or they cannot be official weights.

    Example:
      shapes = {key: w.shape for key, w in reader.read('DiT-XL-2-256x256.pt').items()}
      weights = export('dit', page, params, shapes)
    """
    return resolve(find(name).export)(page, params, shapes)


def latents(name: str) -> dict[str, Any]:
    """How a system uses Stable Diffusion's first stage: options of tasks/autoencoder.py.

    Raises:
      ConfigError: it brings its own or needs none.
    """
    symbol = find(name).latents
    if symbol is None:
        users = ", ".join(WITH_LATENTS)
        raise ConfigError(f"--first_stage is for {users}: {name} brings its own or needs none")
    return dict(resolve(symbol))  # a copy, to which a page adds


def markdown() -> str:
    """The table for README and the documentation, a line for each system."""
    lines = ["| system | weights | `--source` |", "|---|---|---|"]
    lines += [f"| `{system.name}` | {system.weights} | {system.source} |" for system in _TABLE]
    return "\n".join(lines)


def resolve(symbol: str) -> Any:
    """What 'module:name' names."""
    # Late: the table is read for every `--help`, the networks of a system for its weights alone.
    module, _, attribute = symbol.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _read_options(file: Path) -> dict[str, Any]:
    """The official options in a JSON file."""
    # Late, as above: it reads weights too.
    folder = importlib.import_module(f"{HERE}.folder")
    return folder.read_json(file)
