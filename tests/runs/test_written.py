"""Pages as text: what is read back is what was written."""
import ast

import pytest
from ml_collections import ConfigDict

from diffusion_jax.runs import pages
from diffusion_jax.runs.written import written

NAMES = sorted(name for name in pages.installed() if name not in ("folder", "lineage"))


def back(config, folder, name="mine.py"):
    (folder / name).write_text(written(config, name), encoding="utf-8")
    return pages.read(str(folder / name))


@pytest.mark.parametrize("name", NAMES)
def test_every_page_is_read_back_as_it_was(name, tmp_path):
    for variant in ("", ":tiny"):
        page = pages.read(f"{name}{variant}")
        assert back(page.to_dict(), tmp_path) == page


HARD = {
    "seed": 0, "steps": 10**12, "loss_scale": 1e-30, "activations": [["a", [1]]],
    "sharding": (("a'\"b\\d+", "x"), (".*", "replicate")), "init": {"cond/tower": "runs/x:params/y", "": "ü\n\u2028\x00"},
    "ema": {"0-10": {"name": "m:N", "std": float("inf")}, "class": {}},
    "data": {"train": {"name": "m:N", "words": ("one",), "none": None, "yes": True, "empty": (),
                       "long": tuple(f"word{i}" for i in range(40))}},
}


def test_texts_numbers_and_keys_of_all_kinds_are(tmp_path):
    page = back(HARD, tmp_path)
    assert page == ConfigDict(HARD) and page.to_dict() == HARD
    assert isinstance(page.sharding, tuple) and isinstance(page.activations, list) and page.data.train.words == ("one",)


def test_what_the_command_line_changes_stands_in_it(tmp_path):
    page, _ = pages.changed("digits:tiny", ["main", "--config.steps=9", "--config.model.width=16", "--config.init=runs/x"])
    text = written(page.to_dict(), "mine.py")
    assert "config.steps = 9\n" in text and 'config.init = "runs/x"' in text and "width=16" in text
    assert back(page.to_dict(), tmp_path) == page


def test_it_is_flat_python_with_one_assignment_for_each_section():
    page = pages.read("digits_edm2")
    text = written(page.to_dict(), "runs of mine/x.py")
    function = next(node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    targets = [node.targets[0] for node in function.body if isinstance(node, ast.Assign)]
    targets = [target.attr for target in targets if isinstance(target, ast.Attribute)]
    assert sorted(targets) == sorted(page.keys())
    assert "python -m diffusion_jax.main --config 'runs of mine/x.py' --workdir runs/x" in ast.get_docstring(ast.parse(text))
    assert max(map(len, text.splitlines())) <= 100


def test_a_file_with_any_name_has_a_docstring():
    assert 'a"""\\b.py' in ast.get_docstring(ast.parse(written({"seed": 0}, 'a"""\\b.py')))
