"""The README's example of library use runs as it stands."""
import re

from pages import ROOT


def test_the_library_example_runs(tiny_run):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line]) <= 15
    names = {}
    exec(code.replace("runs/digits", str(tiny_run)), names)
    assert names["images"].shape == (16, 8, 8, 1)
    assert abs(names["images"]).max() <= 1.01
