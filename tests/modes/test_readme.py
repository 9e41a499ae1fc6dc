"""README and docs/: the examples run, every command is one that the command line takes, and what they name is there."""
import importlib
import itertools
import re
import shlex

import numpy as np
import pytest
from own_pictures import classes, latents, told
from pages import ROOT

from diffusion_jax.main import first, parsed
from diffusion_jax.runs import pages
from diffusion_jax.runs.folder import save_start
from diffusion_jax.train.state import plain

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
TEXTS = {str(file.relative_to(ROOT)): file.read_text() for file in (README, *DOCS)}
COMMAND = re.compile(r"^[^`#\n]*?\bpython -m diffusion_jax\.main (.*)$", re.MULTILINE)
ROOMS = "cost|data|diffusion|evaluation|metrics|models|modes|nn|pipelines|planning|pretrained|runs|tasks|train"


def commands(name):
    """The arguments of every command in a text, in order; what stands in prose, between backticks, is none."""
    whole = TEXTS[name].replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in COMMAND.findall(whole)]


def examples(name):
    """The Python blocks of a text."""
    return re.findall(r"```python\n(.*?)```", TEXTS[name], re.DOTALL)


def anchors(text):
    """The headings of a text as links name them."""
    headings = [line.lstrip("# ").lower() for line in text.splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in headings}


# Texts ----------------------------------------------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 150


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "docs/experiments.md"])          # a log of measurements
def test_rows_of_tables_are_short(name):
    assert not [line for line in TEXTS[name].splitlines() if line.startswith("|") and len(line) > 140]


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_text_links_to_is_there(name):
    folder = (ROOT / name).parent
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", TEXTS[name]):
        file = folder / target if target else ROOT / name
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), f"{target}#{anchor}"


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_text_names_is_there(name):
    for file in re.findall(rf"\b(?:{ROOMS})/\w+\.py\b", TEXTS[name]):
        package = ROOT / "diffusion_jax" / file
        assert package.exists() or (ROOT / "tests" / file).exists(), file
    for page in re.findall(r"configs/\w+\.py", TEXTS[name]):
        assert (ROOT / page).exists(), page


def test_the_table_of_systems_names_pages_that_are_there():
    table = TEXTS["README.md"].partition("## Systems")[2].partition('"Restores"')[0]
    names = re.findall(r"`(\w+)`", table)
    assert len(names) > 20 and set(names) <= set(pages.installed())


# Examples -------------------------------------------------------------------------------------------------------------------


def test_the_front_door_is_eight_lines(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = examples("README.md")
    assert len([line for line in code.splitlines() if line]) <= 8
    names = {}
    exec(code.replace("runs/digits", str(tiny_run)).replace("10, 20, 30, 40, 50", "1, 2, 3, 4, 5"), names)   # of its five steps
    replay = names["dj"].read_request("threes.png")
    assert replay.request.labels == (3,) and replay.seed == 0
    assert {file.name for file in tmp_path.iterdir()} >= {"threes.png", "digits.npz", "switch.png", "switch.gif"}


def test_the_parts_compose_by_hand(tiny_run):
    code = next(block for block in examples("docs/python.md") if "trailing" in block)
    assert len([line for line in code.splitlines() if line]) <= 20
    names = {}
    exec(code.replace("runs/digits", str(tiny_run)), names)
    assert names["images"].shape == (16, 8, 8, 1)
    assert abs(names["images"]).max() <= 1.01


# Commands -------------------------------------------------------------------------------------------------------------------


OWN_PAGE = re.compile(r"mine\.py|own_\w+\.py")
EVERY = [pytest.param(line, id=f"{name}: {' '.join(line)}") for name in TEXTS for line in commands(name)]


def test_there_are_commands():
    assert len(commands("docs/commands.md")) >= 50 and len(EVERY) >= 60


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where a reader stands who has photographs, 'before' and 'after' they were encoded and a model was trained."""
    root = tmp_path_factory.mktemp("home")
    for name in ("before", "after"):
        told(classes(root / name / "photos", each=1))
    latents(root / "after" / "runs" / "photos_latents")
    for name in ("digits", "photos", "flowers64"):
        save_start(root / "after" / "runs" / name, plain(pages.read("digits")), {"a": np.zeros(1)})
    return root


@pytest.mark.parametrize("arguments", EVERY)
def test_a_command_is_one_that_its_mode_takes(arguments, home, monkeypatch):
    monkeypatch.chdir(home / ("before" if "encode" in arguments else "after"))
    # A page of the reader's own is any page.
    mine = [before == "--config" and OWN_PAGE.fullmatch(after) for before, after in itertools.pairwise(["", *arguments])]
    mode, rest = first(["main", *("digits" if own else part for own, part in zip(mine, arguments, strict=True))])
    options = importlib.import_module(f"diffusion_jax.modes.{mode}").Options
    start, built = parsed(options, rest)
    assert start.workdir is not None and isinstance(built, options)


FOREIGN = re.compile(
    r"\.pth?\b|\.pkl\b|stable-diffusion|sd-vae|karlo|runs/(?:sd|x|adm256|flowers)|flowers102|mypkg|photos|own_network|lineage")
"""Files, and runs of files, that do not come with the package; tests/test_examples.py runs the examples, and
tests/modes/test_lineage.py a whole lineage."""
LESS = {"--num": 20, "--candidates": 2, "--weak_step": 2}
"""The most that a number of a command is in a run of four steps."""
STEPS = {"0,10,20,30,40,50": "0,1,2,3,4,5"}
"""Of its five steps of sampling."""


def small(arguments):
    """The same command at a size of seconds."""
    parts = list(arguments)
    for i, (flag, value) in enumerate(itertools.pairwise(arguments), 1):
        if flag == "--config":
            name, _, variant = value.partition(":")
            parts[i] = f"{name}:{variant},tiny" if variant else f"{name}:tiny"
        elif flag in LESS:
            parts[i] = str(min(int(value), LESS[flag]))
        elif flag == "--values":
            parts[i] = STEPS.get(value, value)
    if "--config" in parts:
        parts.append("--config.evaluate.num=0")             # commands that follow measure
    if {"evaluate", "sweep"} & set(parts) and "--num" not in parts:
        parts += ["--num", "20"]
    return parts


@pytest.mark.slow
def test_all_commands_and_examples_run_in_the_order_they_stand(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [*commands("README.md"), *commands("docs/commands.md")]
    mine = [line for line in lines if not FOREIGN.search(" ".join(line))]
    assert len(mine) >= 35
    refused = {}
    for line in mine:
        done = cli(*small(line))
        if done.code != 0:
            refused[" ".join(small(line))] = done.err.splitlines()[-1:]
    assert not refused
    names = {}
    for code in examples("docs/python.md"):
        exec(code, names)
