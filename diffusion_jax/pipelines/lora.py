"""LoRAs of files, merged into a run's weights right after it is opened: all that follows sees a run.

    run = adapted(open_run("runs/sd"), {"disney.safetensors": 0.7})
    run.identity["loras"]           which, how strongly, and what was in them
"""
from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from diffusion_jax.build import ConfigError, number
from diffusion_jax.runs.folder import LORA_FILE, Run, open_run
from diffusion_jax.train.checkpoint import weights

Loras = Mapping[str, float]
"""File -> strength."""


def opened(
    folder: str, kind: Any, which: str = "ema", step: int | None = None, loras: Loras | None = None
) -> Run:
    """A run as `open_run` opens it, with LoRAs.

    Raises:
      ConfigError: what `open_run` and `adapted` refuse.
    """
    return adapted(open_run(folder, kind, which, step), loras)


def adapted(run: Run, loras: Loras | None) -> Run:
    """A run with LoRAs merged into its weights, one after the other.

    Args:
      run: of any model; only diffusion models have the names of the public layouts, of others a
        file is in our own.
      loras: .safetensors files of the layouts of pretrained/lora.py, or folders of runs that
        trained one, with their strengths; None for none.

    Raises:
      ConfigError: a strength that is no number, or what `read` refuses.
    """
    for name, strength in (loras or {}).items():
        run = _adapted(run, name, strength)
    return run


def _adapted(run: Run, name: str, strength: float) -> Run:
    """A run with one LoRA."""
    # Late: the names of published networks come with their code.
    from diffusion_jax.pretrained import lora

    strength = number(f"the strength of the LoRA {name}", strength)
    file = Path(name).expanduser()
    if file.is_dir():
        file = file / LORA_FILE
    changes = lora.read(file, run.task, run.model.params)
    params = lora.merge(run.model.params, changes, strength)
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    described = {"file": str(file.resolve()), "strength": strength, "content": content}
    model = replace(run.model, params=params)
    return run._replace(model=model, loras=(*run.loras, described))


def write(run: Run) -> None:
    """Writes what a run trained as a file beside its checkpoints, where it was a LoRA.

    Args:
      run: its folder, page and task; the factors are read from its newest checkpoint.
    """
    # Late, as above.
    from diffusion_jax.pretrained import lora

    if "lora" not in run.config:
        return
    factors = weights(run.folder, run.which).params
    if jax.process_index() > 0:
        return
    file = Path(run.folder, LORA_FILE)
    layout = lora.save(file, run.task, factors, run.config["lora"].get("alpha"))
    print(f"the LoRA in the layout {layout}, {file.stat().st_size / 2**20:.1f} MB: {file}")


def again(run: Run, loras: Any) -> Run:
    """A run with the LoRAs that pictures were made with.

    Args:
      run: without them.
      loras: as `Run.identity` has them; from a file, input from elsewhere.

    Raises:
      ConfigError: a file that is no longer there, or that is another now.
    """
    for wanted in loras:
        run = adapted(run, {wanted["file"]: wanted["strength"]})
        if run.loras[-1]["content"] != wanted["content"]:
            raise ConfigError(f"{wanted['file']} is another LoRA than the one of these pictures")
    return run


def listed(identity: Mapping[str, Any]) -> str:
    """The LoRAs of a run's identity for people: 'disney=0.7, lora=1'; '' without any."""
    loras = identity.get("loras", ())
    return ", ".join(f"{Path(one['file']).stem}={one['strength']:g}" for one in loras)
