"""What pages are made of: all of it is there, everything that names it finds it, and making it does nothing else."""
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT

from diffusion_jax import hints
from diffusion_jax.build import check_names, symbol
from diffusion_jax.parts import BOUNDS, KINDS, PARTS, SLOTS
from diffusion_jax.pipelines.spelling import CADS, GRIDS, SAMPLERS, SCHEDULES
from diffusion_jax.train import state

NAMED = re.compile(r"(diffusion_jax(?:\.[a-z_0-9]+)+):([A-Z][A-Za-z0-9_]*|optimizer|partition)\b")
EXAMPLES = {"diffusion_jax.module:Name"}
HARD = {"diffusion_jax.tasks.dvae:DiscreteVAE", "diffusion_jax.tasks.prior:AutoregressivePrior",
        "diffusion_jax.tasks.consistency:Consistency", "diffusion_jax.tasks.meanflow:MeanFlow",
        "diffusion_jax.diffusion.flow_times:flow_match", "diffusion_jax.models.sd3_text:SD3Text"}
"""Parts that are made of a few others only, which a draw seldom hits; the pages' tests make them."""


@pytest.mark.parametrize("name", KINDS)
def test_every_part_is_there_and_its_annotations_mean_something(name):
    module, _, attribute = name.partition(":")
    target = symbol(name)
    assert target is getattr(importlib.import_module(module), attribute) and target.__module__ == module
    _, meanings = hints.signature(target)
    assert all(meaning is not None and not isinstance(meaning, str) for meaning in meanings.values())
    for key, meaning in meanings.items():
        described = hints.described(meaning, "OBJECT")
        takes_spec = "OBJECT" in described
        place = f"{attribute}.{key}"
        if KINDS[name] not in ("samplers", "grids", "guidance"):               # theirs the program gives
            assert not takes_spec or place in SLOTS or key in SLOTS, f"{place} takes an object: of which kind?"


def test_a_part_stands_once_and_tables_name_parts_only():
    listed = [name for names in PARTS.values() for name in names.split()]
    assert len(listed) == len(set(listed)) and set(listed) <= set(KINDS)      # toys of other tests stand there too
    assert set(SLOTS.values()) <= set(PARTS)
    keys = {key for name in KINDS for key in hints.signature(symbol(name))[1]}
    assert {place.rpartition(".")[2] for place in (*SLOTS, *BOUNDS)} <= keys
    assert {place.partition(".")[0] for place in (*SLOTS, *BOUNDS) if "." in place} <= {name.partition(":")[2] for name in KINDS}


def test_all_that_the_package_and_its_pages_name_is_a_part():
    files = [file for folder in ("diffusion_jax", "configs") for file in (ROOT / folder).rglob("*.py")]
    named = {":".join(match) for file in files for match in NAMED.findall(file.read_text())}
    assert named - EXAMPLES - set(KINDS) == set() and len(named) > 60
    assert {*SAMPLERS.values(), *GRIDS.values(), *SCHEDULES.values(), CADS} <= set(KINDS)
    of_state = {value for key, value in vars(state).items() if key.isupper() and isinstance(value, str) and ":" in value}
    assert of_state <= set(KINDS)


def test_configs_of_releases_name_parts_only():
    files = [*(ROOT / "tests/faults/releases").rglob("config/metadata"), *(ROOT / "tests/goldens").rglob("page*.json")]
    assert files
    for file in files:
        text = file.read_text().replace("diffusion_jax.toy:Net", "diffusion_jax.models.dit:DiT")
        check_names(json.loads(text.replace("diffusion_jax.toy:Toy", "diffusion_jax.tasks.diffusion:Diffusion")))


def test_making_parts_of_whatever_arguments_does_nothing_to_the_machine(tmp_path):
    """Against an audit hook; see tests/audit.py for what it looks at."""
    (tmp_path / "victim").write_text("precious")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(Path(__file__).parent / "audit.py"), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    log = json.loads((tmp_path / "log.json").read_text())
    assert log["events"] == [] and log["changed"] == []
    assert {name for name, times in log["made"].items() if not times} <= HARD
    assert (tmp_path / "victim").read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"victim", "log.json"}


def test_the_audit_sees_what_it_should(tmp_path):
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import audit, os, socket, subprocess
watch = audit.Watch(); sys.addaudithook(watch); watch.on = True
open({str(tmp_path / 'a')!r}, 'w').close(); open({str(tmp_path / 'a')!r}, 'rb').close()
os.mkdir({str(tmp_path / 'b')!r}); os.rename({str(tmp_path / 'a')!r}, {str(tmp_path / 'c')!r}); os.remove({str(tmp_path / 'c')!r})
os.environ['X'] = '1'; socket.socket().close(); subprocess.run(['true']); import this
watch.on = False
print('|'.join(event.split()[0] for event in watch.events))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"})
    events = set(done.stdout.splitlines()[-1].split("|"))
    assert events >= {"open", "os.mkdir", "os.rename", "os.remove", "os.putenv", "socket.__new__", "subprocess.Popen", "import"}
