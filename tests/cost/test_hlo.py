"""Programs read from their HLO text: loops, fusions and collectives of compiled programs, and TPU's forms of them by hand."""
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from diffusion_jax.cost import flops
from diffusion_jax.cost.hlo import Program
from diffusion_jax.train import shard


def cost(text):
    return Program(text, 1e12, 1e11).cost()


def compiled(function, *shapes, **options):
    return cost(jax.jit(function, **options).lower(*shapes).compile().as_text())


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


@pytest.mark.parametrize("trips", [1, 5])
def test_a_loop_counts_its_trips(trips):
    def loop(x, w):
        return jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, w)[0]

    shapes = shape(32, 64), shape(trips, 64, 64)
    found = compiled(jax.grad(lambda x, w: loop(x, w).sum(), (0, 1)), *shapes)
    assert found.flops == sum(flops.count(jax.grad(lambda x, w: loop(x, w).sum(), (0, 1)), *shapes).values())
    assert found.bytes > 4 * trips * 64 * 64 and found.seconds >= found.flops / 1e12


def test_collectives_their_sizes_and_groups():
    mesh = shard.make_mesh(data=2, fsdp=4)
    rows, split = (jax.NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((("data", "fsdp"),), ("fsdp",)))

    def step(x, w):
        w = jax.lax.with_sharding_constraint(w, jax.NamedSharding(mesh, PartitionSpec()))
        return jax.grad(lambda w: ((x @ w) ** 2).sum())(w)

    found = compiled(step, shape(64, 128), shape(128, 32), in_shardings=(rows, split), out_shardings=split)
    kinds = {c.kind: c for c in found.collectives}
    assert kinds["all-gather"].size == 4 * 128 * 32 and kinds["all-gather"].group == (0, 1, 2, 3)
    assert {"all-reduce", "reduce-scatter"} & kinds.keys()


TPU = """HloModule jit_step

%fused (p0: bf16[8,72], p1: bf16[72,40]) -> bf16[8,40] {
  %p0 = bf16[8,72]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[72,40]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[8,40]{1,0:T(8,128)(2,1)} convolution(%p0, %p1), dim_labels=bf_io->bf
}

%chain (q0: bf16[8,72], q1: bf16[4,40]) -> bf16[8,40] {
  %q0 = bf16[8,72]{1,0} parameter(0)
  %q1 = bf16[4,40]{1,0} parameter(1)
  ROOT %all-gather.9 = bf16[8,40]{1,0} all-gather(%q1), channel_id=3, replica_groups=mesh['a'=2,'b'=2] {'b'}, dimensions={0}
}

%body (s: (u32[], bf16[8,72], bf16[72,40])) -> (u32[], bf16[8,72], bf16[72,40]) {
  %s = (u32[], bf16[8,72]{1,0}, bf16[72,40]{1,0}) parameter(0)
  %i = u32[] get-tuple-element(%s), index=0
  %x = bf16[8,72]{1,0} get-tuple-element(%s), index=1
  %w = bf16[72,40]{1,0} get-tuple-element(%s), index=2
  %two = u32[] constant(2)
  %next = u32[] add(%i, %two)
  %y = bf16[8,40]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused
  %c = bf16[8,40]{1,0} fusion(%x, %y), kind=kCustom, calls=%chain
  ROOT %t = (u32[], bf16[8,72]{1,0}, bf16[72,40]{1,0}) tuple(%next, %x, %w)
}

%condition (s: (u32[], bf16[8,72], bf16[72,40])) -> pred[] {
  %s = (u32[], bf16[8,72]{1,0}, bf16[72,40]{1,0}) parameter(0)
  %i = u32[] get-tuple-element(%s), index=0
  %n = u32[] constant(8)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: bf16[8,72], w: bf16[72,40]) -> (u32[], bf16[8,72], bf16[72,40]) {
  %x = bf16[8,72]{1,0} parameter(0)
  %w = bf16[72,40]{1,0} parameter(1)
  %zero = u32[] constant(0)
  %init = (u32[], bf16[8,72]{1,0}, bf16[72,40]{1,0}) tuple(%zero, %x, %w)
  %half = bf16[4,40]{1,0} slice(%w), slice={[0:4], [0:40]}
  %c0 = bf16[8,40]{1,0} fusion(%x, %half), kind=kCustom, calls=%chain
  ROOT %while.1 = (u32[], bf16[8,72]{1,0}, bf16[72,40]{1,0}) while(%init), condition=%condition, body=%body
}
"""


def test_loops_that_step_by_two_fusions_and_a_chained_collective():
    found = cost(TPU)
    assert found.flops == 4 * 2 * 8 * 72 * 40
    (gather,) = found.collectives                                # one channel, though it stands in two fusions
    assert (gather.kind, gather.size, gather.group, gather.times, gather.hidden) == ("all-gather", 640, (0, 1), 1, True)


def test_kernels_of_pallas_are_counted_by_the_runs_of_their_loop():
    kernel = '  %k = bf16[8,72]{1,0} custom-call(%x, %x), custom_call_target="tpu_custom_call", backend_config={"a": "(b"}'
    found = cost(TPU.replace("  %two = u32[] constant(2)", f"{kernel}\n  %two = u32[] constant(2)"))
    assert (found.kernels, found.flops) == (4, cost(TPU).flops) and cost(TPU).kernels == 0


def test_attention_in_a_kernel_takes_the_time_of_its_products():
    text = """HloModule m

ENTRY %main (q: bf16[2,8,1024,128], k: bf16[2,8,2048,128]) -> bf16[2,8,1024,128] {
  %q = bf16[2,8,1024,128]{3,2,1,0} parameter(0)
  %k = bf16[2,8,2048,128]{3,2,1,0} parameter(1)
  ROOT %NAME.3 = bf16[2,8,1024,128]{3,2,1,0} custom-call(%q, %k, %k), custom_call_target="tpu_custom_call"
}
"""
    for name, products in (("flash_attention", 2), ("flash_mha_bwd_dkv_block_q_512", 4), ("flash_mha_bwd_dq_block_k_512", 3)):
        found = cost(text.replace("NAME", name))
        assert found.seconds == products * 2 * 2 * 8 * 1024 * 2048 * 128 / 1e12
        assert (found.kernels, found.flops, found.bytes) == (0, 0, 2 * 2 * 8 * 128 * (1024 + 2048 + 2048 + 1024))
    assert cost(text.replace("NAME", "other")).kernels == 1


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("bf16[2,9,9,5]{3,2,1,0} convolution(%a, %b), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
         2 * 2 * 4 * 5 * 25 * 25),                               # 25 of the 27 pairs along a side meet an input
        ("bf16[2,5,5,5]{3,2,1,0} convolution(%a, %b), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
         2 * 2 * 4 * 5 * 13 * 13),
    ],
)
def test_a_convolution_counts_what_meets_an_input(line, want):
    text = f"""HloModule m

ENTRY %main (a: bf16[2,9,9,4], b: bf16[3,3,4,5]) -> bf16[2,9,9,5] {{
  %a = bf16[2,9,9,4]{{3,2,1,0}} parameter(0)
  %b = bf16[3,3,4,5]{{3,2,1,0}} parameter(1)
  ROOT %convolution.1 = {line}
}}
"""
    assert cost(text).flops == want


@pytest.mark.parametrize(
    ("shapes", "attributes", "padding"),
    [
        (("8,32,32,256", "3,3,256,256", "8,32,32,256"), "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f", 1),
        (("8,32,32,3", "3,3,3,256", "8,32,32,256"), "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f", 128 / 27),
        (("8,32,32,256", "32,32,8,16", "256,3,3,16"), "window={size=32x32 pad=1_1x1_1}, dim_labels=f01b_01io->b01f", 1),
        (("256,72", "72,256", "256,256"), "dim_labels=bf_io->bf", 128 / 72),
        (("256,256", "256,72", "256,72"), "dim_labels=bf_io->bf", 128 / 72),
        (("16,256,72", "16,72,256", "16,256,256"), "window={size=16 stride=15 lhs_dilate=16}, dim_labels=0bf_0io->0bf", 128 / 72),
    ],
    ids=["3x3", "first layer", "gradient of a kernel", "72 contracted", "72 columns", "batch of products"],
)
def test_a_matrix_unit_that_is_not_filled_takes_longer(shapes, attributes, padding):
    a, b, out = (f"bf16[{dims}]{{S(1)}}" for dims in shapes)
    text = f"""HloModule m

ENTRY %main (a: bf16[], b: bf16[]) -> bf16[] {{
  %a = {a} parameter(0)
  %b = {b} parameter(1)
  ROOT %convolution.1 = {out} convolution(%a, %b), {attributes}
}}
"""
    found = cost(text)
    assert found.seconds == pytest.approx(found.flops * padding / 1e12, rel=1e-5)


def test_what_is_fetched_ahead_costs_bytes_and_no_time_of_its_own():
    text = """HloModule m

%part (p: f32[8,128]) -> f32[2,128] {
  %p = f32[8,128]{1,0} parameter(0)
  ROOT %slice.1 = f32[2,128]{1,0:S(1)} slice(%p), slice={[0:2], [0:128]}
}

ENTRY %main (x: f32[8,128], w: f32[128,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %w = f32[128,128]{1,0} parameter(1)
  %start = ((f32[8,128]{1,0}), f32[2,128]{1,0:S(1)}, s32[]{:S(2)}) async-start(%x), calls=%part
  %rows = f32[2,128]{1,0:S(1)} async-done(%start)
  %copy = (f32[128,128]{1,0:S(1)}, f32[128,128]{1,0}, u32[]{:S(2)}) copy-start(%w)
  %near = f32[128,128]{1,0:S(1)} copy-done(%copy)
  ROOT %convolution.1 = f32[8,128]{1,0:S(1)} convolution(%x, %near), dim_labels=bf_io->bf
}
"""
    fetched, used = 4 * (2 * 128 + 128 * 128), 4 * 8 * 128
    busy = Program(text, 1.0, 1e11).cost()
    assert (busy.bytes, busy.seconds) == (fetched + used, 2 * 8 * 128 * 128)
    assert Program(text, 1e30, 1e11).cost().seconds == pytest.approx((fetched + used) / 1e11)
