"""docs/ as a site: pages begin with what the reader will have, hang together, and have cells of Python, which the build runs."""
import ast
import importlib.util
import re

import pytest
from pages import ROOT

import diffusion_jax

DOCS = ROOT / "docs"
PAGES = {str(file.relative_to(DOCS)): file.read_text() for file in sorted(DOCS.rglob("*.md")) if "_build" not in file.parts}
FRONT = re.compile(r"\A---\n.*?\n---\n\n", re.DOTALL)
TREE = re.compile(r"```\{toctree\}\n(.*?)```", re.DOTALL)
CELL = re.compile(r"```\{code-cell\}\n(.*?)```", re.DOTALL)


def entries(name):
    """What the toctrees of a page name."""
    for tree in TREE.findall(PAGES[name]):
        yield from (line for line in tree.splitlines() if line and not line.startswith(":"))


def cells(name):
    """The Python of a page that the build executes; what begins with "%%bash" is a command."""
    for cell in CELL.findall(PAGES[name]):
        if not cell.startswith("%%bash"):
            yield "\n".join(line for line in cell.splitlines() if not line.startswith(":tags:"))


EXECUTED = [name for name in PAGES if CELL.search(PAGES[name])]


@pytest.mark.parametrize("name", [name for name in PAGES if not name.startswith("studio")])
def test_a_page_begins_with_what_the_reader_will_have(name):
    title, promise = FRONT.sub("", PAGES[name]).split("\n\n")[:2]
    assert re.fullmatch(r"# .+", title)
    assert re.match(r"\*You will have: [^*]+[.]\*", promise.replace("\n", " "))


def test_the_toctrees_name_every_page_and_no_other():
    named = {str((DOCS / name).parent.joinpath(f"{entry}.md").relative_to(DOCS))
             for name in PAGES for entry in entries(name) if "*" not in entry}
    assert named == {name for name in PAGES if name != "index.md" and not name.startswith("studio")}


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_are_there(name):
    for target in re.findall(r"\]\(([^)#\s]+)", PAGES[name]):
        assert (DOCS / name).parent.joinpath(target).exists(), target
    assert "![](" not in PAGES[name]                        # a picture says what it shows


def test_every_picture_is_shown():
    shown = {target for text in PAGES.values() for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)}
    assert {file.name for file in DOCS.glob("*.png") if not file.name.startswith("studio")} <= shown


@pytest.mark.parametrize("name", EXECUTED)
def test_cells_are_python_and_pages_with_cells_have_a_kernel(name):
    assert "file_format: mystnb" in FRONT.match(PAGES[name]).group()
    for cell in cells(name):
        ast.parse(cell)


def test_figures_are_made_where_they_are_promised():
    assert set(EXECUTED) >= {"guidance.md", "samplers.md", "editing.md", "posthoc_ema.md", "weights.md", "start.md"}
    assert len([name for name in EXECUTED if name.startswith("notebooks/")]) == 3


def test_the_reference_has_every_room():
    reference = "\n".join(text for name, text in PAGES.items() if name.startswith("reference/"))
    rooms = set(re.findall(r"^\{room\} (\w+)$", reference, re.MULTILINE))
    package = ROOT / "diffusion_jax"
    folders = {folder.name for folder in package.iterdir() if (folder / "__init__.py").exists()}
    files = {file.stem for file in package.glob("*.py") if not file.stem.startswith("_")}
    assert rooms >= (folders - {"studio"}) | files and rooms <= folders | files


def test_the_lineage_says_of_each_step_what_it_solved_and_where_it_is():
    steps = re.split(r"^## \d+\. ", PAGES["lineage.md"], flags=re.MULTILINE)[1:]
    assert len(steps) == 12
    for step in steps:
        assert "**Solved.**" in step and "**Left open.**" in step and "python -m diffusion_jax.main" in step
        assert len(re.findall(r"^    .*\(\d+\)", step, re.MULTILINE)) == 2
        assert re.search(r"`\w+/\w+\.py`", step) and re.search(r"\b2\d{3}\.\d{5}\b|\b2\d{3}\.\d{4,5}\b", step)


def test_the_citation_is_of_this_version():
    assert f"\nversion: {diffusion_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()


# Docstrings -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def docstrings():
    spec = importlib.util.spec_from_file_location("docstrings", DOCS / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_prose_keeps_its_letters_and_formulas_stay_as_they_stand(docstrings):
    lines = ["A step of `x_t` and *eps*, |x| in R_,", "of two:", "", "    x_s = a * x0_     (1)", "", "    y  = |x|", "",
             "- one `a`", "  and more", "- two"]
    assert docstrings.converted(lines) == [
        r"A step of ``x_t`` and \*eps\*, \|x\| in R\_,", "of two:", "", "::", "", "    x_s = a * x0_     (1)", "", "    y  = |x|",
        "", "", "- one ``a``", "  and more", "- two", ""]


def test_sections_are_left_to_napoleon_and_examples_alone(docstrings):
    lines = ["Does.", "", "Args:", "  x: of *one*", "    and two.", "", "Example:", "  >>> f(x)[0] * 2", "  3"]
    assert docstrings.converted(lines) == [
        "Does.", "", "", "Args:", r"  x: of \*one\*", "    and two.", "", "", "Example:", "  >>> f(x)[0] * 2", "  3", ""]
