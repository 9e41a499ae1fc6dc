"""What the faults share: a nursery of runs, and one run that nothing happened to."""
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))               # the toy that trains in milliseconds

from kills import command
from nursery import Nursery


@pytest.fixture(scope="package")
def nursery():
    with Nursery() as running:
        yield running


@pytest.fixture(scope="package")
def straight(nursery, tmp_path_factory):
    """The digits run of kills.py, 40 steps, left alone."""
    folder = tmp_path_factory.mktemp("faults")
    log = folder / "log.txt"
    assert nursery.wait(nursery.start(command(folder / "straight", 40), log)) == 0, log.read_text()
    return folder / "straight"
