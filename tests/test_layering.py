"""A file imports only from lower layers or from its own folder: the table of the design, read off the imports."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "diffusion_jax"
LAYERS = {
    "types": 0, "build": 0,
    "nn": 1, "diffusion": 1, "cost": 1,
    "models": 2, "data": 2,
    "tasks": 3, "train": 3, "metrics": 3,
    "pipelines": 4, "pretrained": 4,
    "modes": 5,
    "main": 6,
}
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def part(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imported(path: Path) -> list[str]:
    """Modules named anywhere in the file, inside functions too."""
    names = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_downwards(path):
    own = part(path)
    assert own in LAYERS, f"{own} has no layer"
    for name in imported(path):
        if name.split(".")[0] == "diffusion_jax":
            other = name.split(".")[1]
            assert other == own or LAYERS[other] < LAYERS[own], f"{path} imports {name}, which lies in layer {LAYERS[other]}"


@pytest.mark.parametrize("path", [p for p in FILES if part(p) == "diffusion"], ids=str)
def test_the_mathematics_knows_no_networks(path):
    assert not [name for name in imported(path) if name.startswith("flax.linen") or name == "flax.nn"]


@pytest.mark.parametrize("path", [p for p in FILES if part(p) == "train"], ids=str)
def test_training_knows_tasks_by_protocol_only(path):
    assert not [name for name in imported(path) if name.startswith("diffusion_jax.tasks")]


def test_files_are_short():
    long = {str(path): n for path in FILES if (n := len((ROOT / path).read_text().splitlines())) > 400}
    assert not long
