"""What the suite itself stands on: flags that this XLA has, scopes that stay on one core."""
import itertools

import pytest
from compiling import FLAGS, known_flags, scope, share_contexts


def test_flags_that_xla_has_not_are_left_out():
    devices = FLAGS[0]
    assert known_flags((devices, "--xla_no_such_flag=1", "--xla_force_host=1")) == [devices]


def test_a_file_or_a_system_of_goldens_is_a_scope():
    assert scope("tests/nn/test_mp.py::test_a[x/y]") == "tests/nn/test_mp.py"
    adm, dit = (scope(f"tests/test_goldens.py::test_golden[{system}/keys]") for system in ("adm", "dit"))
    assert adm != dit == scope("tests/test_goldens.py::test_golden[dit/loop]")


def test_programs_share_contexts_in_turn(monkeypatch):
    mlir = pytest.importorskip("jax._src.interpreters.mlir")
    count = itertools.count()
    monkeypatch.setattr(mlir, "make_ir_context", lambda: next(count), raising=False)
    share_contexts(3)
    assert [mlir.make_ir_context() for _ in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    monkeypatch.delattr(mlir, "make_ir_context")
    share_contexts()
    assert not hasattr(mlir, "make_ir_context")
