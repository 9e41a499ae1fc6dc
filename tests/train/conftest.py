"""The toy's step is compiled once for the whole folder, not once for each test."""
import pytest
from compiling import compiled_once


@pytest.fixture(scope="package", autouse=True)
def compile_once(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("compiled")):
        yield
