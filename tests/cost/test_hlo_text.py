"""The text of HLO modules, taken apart: instructions, tuples, comments and the sizes of arrays."""
import pytest

from diffusion_jax.cost.hlo_text import Instruction, dims_of, in_memory, parse, size_of

TEXT = """HloModule jit_f, entry_computation_layout={(f32[2,3]{1,0})->f32[2,3]{1,0}}

%inner.1 (p: f32[2,3], /*index=1*/q: f32[]) -> f32[2,3] {
  %p = f32[2,3]{1,0} parameter(0)
  %q = f32[] parameter(1)
  ROOT %broadcast.2 = f32[2,3]{1,0} broadcast(%q), dimensions={}
}

ENTRY %main.5 (x: f32[2,3]) -> (f32[2,3], s32[]) {
  %x = f32[2,3]{1,0} parameter(0)
  %c = f32[] constant(2), metadata={op_name="a (b"}
  %call = f32[2,3]{1,0} fusion(%x, %c), kind=kLoop, calls=%inner.1
  %pad.7 = f32[4,3]{1,0} pad(f32[2,3]{1,0} %call, f32[] %c), padding=1_1x0_0
  %n = s32[] constant(7)
  ROOT %out = (f32[2,3]{1,0}, /*index=1*/s32[]) tuple(%call, %n)
}
"""


def test_computations_and_the_one_that_runs():
    computations, entry = parse(TEXT)
    assert entry == "main.5" and {name: len(body) for name, body in computations.items()} == {"inner.1": 3, "main.5": 6}
    assert [(step.name, step.root) for step in computations["inner.1"]] == [("p", False), ("q", False), ("broadcast.2", True)]


def test_an_instruction_has_a_shape_an_opcode_operands_and_the_rest():
    steps = {step.name: step for step in parse(TEXT)[0]["main.5"]}
    assert steps["call"] == Instruction("call", "f32[2,3]{1,0}", "fusion", ("x", "c"), ", kind=kLoop, calls=%inner.1", False)
    assert steps["pad.7"].operands == ("call", "c")                                # the shapes before them left out
    assert steps["out"] == Instruction("out", "(f32[2,3]{1,0}, s32[])", "tuple", ("call", "n"), "", True)
    assert steps["x"].operands == ("0",) and steps["c"].attributes == ', metadata={op_name="a (b"}'


@pytest.mark.parametrize(("shape", "dims", "size", "memory"), [
    ("f32[2,3]{1,0}", (2, 3), 24, 24), ("f32[]", (), 4, 4), ("bf16[8,0]", (8, 0), 0, 0), ("pred[5]", (5,), 5, 5),
    ("s4[8]", (8,), 4, 4), ("f32[2,3]{1,0:T(8,128)S(1)}", (2, 3), 24, 0),
    ("(f32[2]{0}, s32[], u8[3]{0:S(5)})", (2,), 15, 12), ("((f64[2]), token[])", (2,), 16, 16),
])
def test_bytes_of_arrays_and_tuples(shape, dims, size, memory):
    assert (dims_of(shape), size_of(shape), in_memory(shape)) == (dims, size, memory)
