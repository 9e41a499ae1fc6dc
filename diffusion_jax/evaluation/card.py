"""The model card of an exported run: README.md with Hugging Face's head, and a grid of samples.

What stands in it was measured or is on the page; the one thing that nobody here can know, the
license, is left to fill in.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from diffusion_jax.build import short
from diffusion_jax.evaluation.report import Measured
from diffusion_jax.pretrained.package import Package
from diffusion_jax.runs.folder import Run

SAMPLES = "samples.png"
CLASSES = 20
"""Names of classes that a card lists."""
SHOWN = 12
"""Options of a part that a card lists."""
LICENSE = "fill-in"
"""What stands in the head until somebody fills it in."""
PLACES = {"FOLDER": ".", "PROMPT": "a prompt"}
"""What stands for what in the lines that load a package, where the card lies beside it."""


def files(run: Run, package: Package, data: Mapping[str, Any]) -> dict[str, Any]:
    """README.md and samples.png of an export, path -> content.

    Args:
      run: the run.
      package: what is exported.
      data: what its checkpoint says of its data (data/fingerprint.py); {} for nothing.
    """
    picture = newest_samples(run)
    card = text(run, package, data, picture is not None)
    return {"README.md": card} | ({} if picture is None else {SAMPLES: picture.read_bytes()})


def newest_samples(run: Run) -> Path | None:
    """The grid of samples that the run's training wrote last; None where it wrote none."""
    pictures = sorted(Path(run.folder, "samples").glob("[0-9]*.png"))
    return pictures[-1] if pictures else None


def text(run: Run, package: Package, data: Mapping[str, Any], samples: bool) -> str:
    """README.md."""
    parts = [
        _head(run, package),
        f"# {Path(run.folder).resolve().name}",
        f"{run.task.noun.capitalize()}, trained with diffusion_jax, written for {package.title}.",
        f"![samples]({SAMPLES})" if samples else "",
        *(f"**Note.** {note}" for note in package.notes),
        "## Loading",
        f"```python\n{loading(run, package)}\n```",
        f"Here again:\n\n```bash\n{_placed(package.command)}\n```" if package.command else "",
        "## Model",
        _table(_model(run)),
        "## Data",
        _data(run, data),
        "## Training",
        _table(_training(run)),
        "## Figures",
        _figures(run),
        "## License",
        "Fill in: the license of these weights, here and in the head of this file; that of the "
        "data may bind them too.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def loading(run: Run, package: Package) -> str:
    """The lines of Python that load a package from its own folder, sampled as the page says."""
    sample = run.recipe()
    steps = sample.get("steps", 50)
    values = {
        "GUIDANCE": str(float(sample.get("guidance", 1.0))),
        "STEPS": str(steps if isinstance(steps, int) else 50),
    }
    code = _placed(package.code)
    for word, value in values.items():
        code = code.replace(word, value)
    return code


def _placed(code: str) -> str:
    """Lines that stand in the folder itself."""
    for word, value in PLACES.items():
        code = code.replace(word, value)
    return code


def _head(run: Run, package: Package) -> str:
    """What Hugging Face reads: YAML between dashes."""
    lines = ["license: other", f"license_name: {LICENSE}"]
    lines += [f"library_name: {package.library}"] if package.library else []
    conditions = set(getattr(getattr(run.task, "cond", None), "keys", ()))
    if hasattr(run.task, "process") and hasattr(run.task, "scale"):
        kind = "text-to-image" if "tokens" in conditions else "unconditional-image-generation"
        lines += [f"pipeline_tag: {kind}"]
    return "\n".join(["---", *lines, "tags:", "- diffusion_jax", "---"])


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    written = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(written.replace("|", "\\|").split())


def _spec(spec: Mapping[str, Any]) -> str:
    """A part of a page in one line: 'DDPM(schedule=linear)'."""
    options = [
        f"{key}={_bare(value)}"
        for key, value in spec.items()
        if not isinstance(value, Mapping) and key != "name"
    ]
    return f"{str(spec.get('name', '')).rpartition(':')[2]}({', '.join(options[:SHOWN])})"


def _bare(value: Any) -> Any:
    """A value; of a path the last part: where things lie here is nobody else's business."""
    return Path(value).name if isinstance(value, str) and "/" in value else value


def _model(run: Run) -> list[tuple[str, Any]]:
    """What it is."""
    task = run.config["task"]
    count = sum(leaf.size for leaf in jax.tree.leaves(run.model.params))
    rows: list[tuple[str, Any]] = [("parameters", count)]
    rows += [("network", _spec(run.config["model"]))] if "model" in run.config else []
    names = {"cond": "conditions", "process": "process", "scale": "predicts"}
    # Of an autoencoder `scale` is a number, that of its latents.
    rows += [
        (title, _spec(task[key])) for key, title in names.items() if isinstance(task.get(key), Mapping)
    ]
    shape = task.get("shape")
    return rows + ([("shape", " x ".join(map(str, shape)))] if shape else [])


def _data(run: Run, data: Mapping[str, Any]) -> str:
    """What it was trained on."""
    section = run.config.get("data", {})
    if "train" not in section:
        return "These weights were imported: what they were trained on, their authors say."
    classes = data.get("classes") or ()
    rows: list[tuple[str, Any]] = [("data set", _spec(section["train"]))]
    rows += [("records", data["records"])] if "records" in data else []
    if classes:
        more = f" and {len(classes) - CLASSES} more" if len(classes) > CLASSES else ""
        names = ", ".join(short(name)[1:-1] for name in classes[:CLASSES])
        rows += [("classes", len(classes)), ("their names", f"{names}{more}")]
    return _table(rows)


def _training(run: Run) -> list[tuple[str, Any]]:
    """What it cost."""
    rows: list[tuple[str, Any]] = [("weights", run.which), ("step", run.step)]
    rows += [("LoRA", f"{Path(one['file']).name} at {one['strength']:g}") for one in run.loras]
    if "batch" in run.config:
        batch = run.config["batch"]
        rows += [("batch", batch), ("examples", run.step * batch)]
    return rows + ([("optimiser", _spec(run.config["optim"]))] if "optim" in run.config else [])


def _figures(run: Run) -> str:
    """What was measured last."""
    file = Path(run.folder, "report.json")
    if not file.is_file():
        return "Nothing was measured: `--mode evaluate` does."
    figures = json.loads(file.read_text(encoding="utf-8"))
    numbers = Measured(figures if isinstance(figures, dict) else {}).numbers
    return _table(numbers.items())
