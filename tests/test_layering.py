"""A file imports only from lower layers or from its own folder: the table of the design, read off the imports."""
import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent / "diffusion_jax"
LAYERS = {
    "parts": -1, "hints": -1, "types": 0, "build": 0,
    "files": 1, "nn": 1, "diffusion": 1, "cost": 1,
    "models": 2, "data": 2,
    "tasks": 3, "train": 3, "metrics": 3,
    "pretrained": 4,
    "runs": 5,
    "pipelines": 6,
    "evaluation": 7, "planning": 7,
    "studio": 8, "lineage": 8,
    "modes": 9,
    "main": 10,
    "__main__": 11,
}
MODES = ("train", "sample", "evaluate", "reference", "sweep", "posthoc_ema", "import_weights", "export_weights", "edit", "encode",
         "likelihood", "plan", "page", "studio", "lineage")
MIRRORED = ("runs", "pipelines", "evaluation", "planning")
"""Folders whose files and files of tests are one for one."""
TESTED = (*MIRRORED, "nn", "diffusion", "metrics", "data", "models", "cost")
"""Folders each of whose files has a file of tests of its name."""
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


def test_the_modes_are_these_and_their_options():
    assert {path.stem for path in FILES if part(path) == "modes"} == {"options", *MODES}


@pytest.mark.parametrize("name", ["options", *MODES])
def test_a_mode_knows_no_other_mode_and_their_options_know_none(name):
    modules = [module.split(".") for module in imported(Path("modes", f"{name}.py"))]
    assert not {parts[2] for parts in modules if parts[:2] == ["diffusion_jax", "modes"]} & {*MODES} - {name}


def test_the_front_door_imports_nothing_at_once():
    """Names are imported when they are used; what stands under TYPE_CHECKING is for tools."""
    body = ast.parse((ROOT / "__init__.py").read_text()).body
    names = [node.module for node in body if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
    assert set(names) == {"__future__", "importlib", "typing"}


@pytest.mark.parametrize("path", [path for path in FILES if part(path) in TESTED], ids=str)
def test_every_file_has_its_tests(path):
    assert (TESTS / path.parent / f"test_{path.name}").is_file()


def test_tests_of_the_upper_house_are_of_a_file():
    files = {TESTS / path.parent / f"test_{path.name}" for path in FILES}
    extra = [file for name in MIRRORED for file in (TESTS / name).glob("test_*.py") if file not in files]
    assert not extra
