"""A run for other programs: whose network it is, and the folder that its system makes of it.

    --to original     the state dict of the official code, and the options of its constructor
    --to diffusers    what diffusers or transformers load, where they have a class for it

What a system writes is in its own file, `write` and `diffusers` of pretrained/systems.py name it.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.build import ConfigError
from diffusion_jax.pretrained import systems
from diffusion_jax.pretrained.package import CONFIG, WEIGHTS, Package
from diffusion_jax.pretrained.systems import SYSTEMS, System
from diffusion_jax.types import Params

MODELS = {
    "DiT": "dit", "DiffiT": "diffit", "EDM2": "edm2", "DVAE": "dvae", "CodebookVAE": "dvae", "DALLE": "dalle", "KL": "vae",
    "VQ": "vae", "TAE": "tae", "MMDiT": "sd3", "LPIPS": "perceptual", "Classifier": "adm", "Prior": "karlo", "Relay": "karlo",
}
"""Networks that one system alone has."""
PARTS_OF = {":glide:Text": "glide", ":glide:Inpaint": "glide", ":unclip:ImageText": "karlo", ":sdxl_text:XLText": "sdxl"}
"""Conditioners, by module and name, that tell whose UNet it is."""
AUGMENTED = ":Augmented"
TARGETS = ("diffusers", "original")
FIRST = "first_stage"
FIRST_STAGE_NOTE = ("The first stage is not among these files, as it is in no published one: export the run's folder first_stage "
                    "too.")
BACK = dict.fromkeys(("sd", "sd3", "sdxl", "tae", "vae", "karlo"), "FOLDER") | {"clip": f"FOLDER/{WEIGHTS}"}
"""What import_weights takes of a folder for diffusers, by system; of others it reads the official layout alone."""
WITH_FIRST = ("karlo", "sd", "sd3", "sdxl")
"""Systems whose official files hold what a run was trained on."""
SEVERAL = ("encoder.safetensors", "decoder.safetensors", "prior.safetensors", "improved-sr.safetensors")
"""Weights in several files, whose folder import_weights takes."""
PARTS = ("decoder/config.json", "prior/config.json")
"""Of an unCLIP for diffusers: one of these import_weights needs, an upsampler alone does not say what it enlarges."""


def of_page(page: Mapping[str, Any]) -> System:
    """The system that a run's page belongs to, by its parts: imported, or trained here.

    Raises:
      ConfigError: nobody has published such a network.
    """
    model, task = _model(page), page["task"]
    kind = str(model.get("name", task.get("name", ""))).rpartition(":")[2]
    if kind == "CLIP":
        return SYSTEMS["glide" if (model.get("image") or {}).get("steps") else "clip"]
    if kind == "UNet":
        return SYSTEMS[_unet(model, task)]
    if kind not in MODELS:
        raise ConfigError(f"nobody has published a network like this {kind}: there is no layout to write it in")
    return SYSTEMS[MODELS[kind]]


def _model(page: Mapping[str, Any]) -> Mapping[str, Any]:
    """The network of a page; a first stage that was imported with its model has it in its task."""
    return page.get("model", page["task"].get("model", {}))


def _unet(model: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    """Whose UNet it is, by its condition and by what it makes."""
    cond = task.get("cond", {})
    names = [str(part.get("name", "")) for part in (cond, *cond.get("parts", ()))]
    owners = [PARTS_OF.get(name.replace("diffusion_jax.models.", ":")) for name in names]
    of_latents = model.get("transformer") or "model" in (task.get(FIRST) or {})
    return next(filter(None, owners), "sd" if of_latents else "adm")


def not_augmented(page: Mapping[str, Any], params: Params) -> tuple[Mapping[str, Any], Params]:
    """A page and its parameters without what tells the network how a training picture was augmented (models/augment.py).

    Other programs sample, where nothing is augmented: the network is the same.

    Raises:
      ConfigError: an EDM2 without labels, whose layers count how many vectors they add.
    """
    cond = page["task"].get("cond", {})
    if not str(cond.get("name", "")).endswith(AUGMENTED):
        return page, params
    inner = cond["cond"]
    if f"{page['model'].get('name')}".endswith(":EDM2") and str(inner["name"]).endswith(":Nothing"):
        raise ConfigError("EDM2's code has no augmentation, and a network without labels is not the same without it: train it "
                          "with labels, or without Augmented")
    return {**page, "task": {**page["task"], "cond": inner}}, {**params, "cond": params["cond"].get("cond", {})}


def package(page: Mapping[str, Any], params: Params, to: str, class_names: tuple[str, ...] = ()) -> Package:
    """A run for other programs.

    Args:
      page: the run's.
      params: the run's, and as first_stage those of its frozen first stage.
      to: one of `TARGETS`.
      class_names: in the order of the labels, where the run has them.

    Raises:
      ConfigError: there is no class of diffusers, or no such option in the other program; the line says which.
    """
    page, params = not_augmented({**page, "model": _model(page)}, params)
    system = of_page(page)
    if to == "diffusers":
        if system.diffusers is None:
            raise ConfigError(f"neither diffusers nor transformers has a class for system {system.name}: give --to original")
        written = systems.resolve(system.diffusers)(page, params, class_names)
        alone = system.name == "karlo" and not any(name in written.files for name in PARTS)
        return written._replace(command=_command(system.name, "" if alone else BACK.get(system.name, ""), ""))
    of_system = params if system.name in WITH_FIRST else {name: part for name, part in params.items() if name != FIRST}
    written = systems.resolve(system.write)(page, of_system)
    notes = written.notes if len(of_system) == len(params) else (*written.notes, FIRST_STAGE_NOTE)
    weights = [name for name in written.files if name.endswith(".safetensors")]
    source = "FOLDER" if any(name in weights for name in SEVERAL) else f"FOLDER/{weights[0]}"
    official = f"FOLDER/{CONFIG}" if CONFIG in written.files else ""
    return written._replace(notes=notes, command=_command(system.name, source, official))


def _command(system: str, source: str, official: str) -> str:
    """The command that imports a package here again; '' where there is none."""
    if not source:
        return ""
    options = f" --official {official}" if official else ""
    program = "python -m diffusion_jax.main --mode import_weights"
    return f"{program} --system {system} --source {source}{options} --workdir runs/{system}"
