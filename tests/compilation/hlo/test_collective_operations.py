"""Bytes read from a program's text: from lines as XLA writes them, and from programs of known bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.compilation.hlo import bytes_received, collectives

LISTED = "replica_groups={{0,1,2,3},{4,5,6,7}}"


def one(line: str):
    (found,) = collectives(line)
    return found


@pytest.mark.parametrize(
    ("line", "kind", "received"),
    [
        # Two groups of four; a result of 64 bytes on each device.
        (f"%a = f32[16]{{0}} all-gather(%p), channel_id=1, {LISTED}, dimensions={{0}}", "all-gather", 8 * 48),
        (f"ROOT %a = f32[16]{{0}} all-reduce(%p), {LISTED}, to_apply=%add", "all-reduce", 8 * 2 * 48),
        (f"%a = f32[16]{{0}} reduce-scatter(%p), {LISTED}, dimensions={{0}}", "reduce-scatter", 8 * 3 * 64),
        (f"%a = f32[16]{{0}} all-to-all(%p), {LISTED}, dimensions={{0}}", "all-to-all", 8 * 48),
        (f"%a = f32[16]{{0}} ragged-all-to-all(%p, %q, %r), {LISTED}", "ragged-all-to-all", 8 * 48),
        (f"%a = f32[16]{{0}} collective-broadcast(%p), {LISTED}", "collective-broadcast", 2 * 3 * 64),
        (
            "%a = f32[16]{0} collective-permute(%p), source_target_pairs={{0,1},{1,2},{5,5}}, metadata={}",
            "collective-permute",
            2 * 64,
        ),
    ],
)
def test_bytes_of_every_kind(line, kind, received):
    assert one(line).kind == kind
    assert one(line).bytes_received == bytes_received(line) == received


@pytest.mark.parametrize(
    ("written", "groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 2, 4),
        ("{{0,4},{1,5},{2,6},{3,7}}", 4, 2),
        ("{{0},{1}}", 2, 1),
        ("[2,4]<=[8]", 2, 4),
        ("[2,4]<=[4,2]T(1,0)", 2, 4),
        ("[4,2]<=[2,2,2]T(2,0,1)", 4, 2),
        ("mesh['a'=2,'b'=4] {'b'}", 2, 4),
        ("mesh['a'=2,'b'=4] {'a','b'}", 1, 8),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", 4, 2),
        ("mesh['a'=2,'b'=4], device_ids=(7,6,5,4,3,2,1,0) {'b'}", 2, 4),
        ("mesh['a'=4,'b'=2] {'a':(1)2}", 4, 2),
        ("mesh['a'=4,'b'=2] {'a':(2)2,'b'}", 2, 4),
    ],
)
def test_every_form_of_groups(written, groups, size):
    found = one(f"%a = bf16[8,4]{{1,0}} all-gather(%p), channel_id=1, replica_groups={written}, dimensions={{0}}")
    assert (found.groups, found.group_size) == (groups, size)
    assert found.result_bytes == 64


def test_groups_left_out_mean_all_devices():
    text = "HloModule jit_f, is_scheduled=true, num_partitions=8\n%a = s8[8] all-gather(%p), replica_groups={}"
    assert (one(text).groups, one(text).group_size) == (1, 8)


@pytest.mark.parametrize("groups", ["replica_groups={{0,1},{2}}", "replica_groups=@elsewhere", ""])
def test_groups_that_cannot_be_read_are_an_error(groups):
    with pytest.raises(ValueError, match="replica groups"):
        collectives(f"%a = f32[16]{{0}} all-gather(%p), {groups}")


@pytest.mark.parametrize(
    ("line", "result_bytes"),
    [
        (f"(f32[4]{{0}}, f32[16]{{0}}) all-gather-start(%p), {LISTED}", 64),
        (f"((f32[4]{{0}}, s8[2]), (f32[16]{{0}}, s8[8])) all-gather-start(%p, %q), {LISTED}", 72),
        (f"((f32[16]{{0}}), f32[4]{{0}}, u32[]) reduce-scatter-start(%p), {LISTED}", 16),
        (f"f32[16]{{0}} all-reduce-start(%p), {LISTED}", 64),
        (f"(f32[16]{{0}}, f32[2,3]{{1,0:T(8,128)}}) all-reduce-start(%p, %q), {LISTED}", 64 + 24),
        ("(f32[16], f32[16], u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}", 64),
    ],
)
def test_an_asynchronous_start_counts_its_result_alone(line, result_bytes):
    assert one(f"%start = {line}").result_bytes == result_bytes


def test_done_and_operands_of_that_name_do_not_count():
    text = """
      %done = f32[16]{0} all-gather-done(%all-gather-start)
      %fused = f32[16]{0} fusion(%all-gather.3), kind=kLoop, calls=%all-reduce.clone
      %next = f32[16]{0} add(%collective-permute, %q), metadata={op_name="jit(f)/all-gather(x)"}
    """
    assert collectives(text) == []


@pytest.mark.parametrize(
    ("array", "result_bytes"),
    [
        ("pred[8]", 8),
        ("s4[8]{0:E(4)}", 4),
        ("f8e4m3fn[8]", 8),
        ("bf16[2,4]{1,0}", 16),
        ("f32[]", 4),
        ("c64[8]", 64),
        ("f64[0,8]", 0),
        ("(f32[1,16]{1,0}, f32[1,16]{1,0}, /*index=2*/u8[3])", 64 + 64 + 3),
    ],
)
def test_sizes_of_results(array, result_bytes):
    assert one(f"%a = {array} all-to-all(%p), {LISTED}").result_bytes == result_bytes


def compiled_text(function, in_spec: P, out_spec: P, dtype) -> str:
    """On a mesh of 2x4 devices, an array of 32x16."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    program = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_spec, out_specs=out_spec, check_vma=False))
    argument = jax.ShapeDtypeStruct((32, 16), dtype, sharding=NamedSharding(mesh, in_spec))
    return program.lower(argument).compile().as_text()


BLOCK = 16 * 16 * 4  # bytes that a device holds of 32x16 elements of four bytes, rows split over "a"
COMPILED = {
    "psum over b": (lambda x: jax.lax.psum(x, "b"), P("a"), P("a"), 2 * 2 * 3 * BLOCK),
    "psum over both": (lambda x: jax.lax.psum(x, ("a", "b")), P("a"), P(), 2 * 7 * BLOCK),
    "all_gather over a": (lambda x: jax.lax.all_gather(x, "a", tiled=True), P("a"), P(), 8 * BLOCK),
    "all_gather over b": (lambda x: jax.lax.all_gather(x, "b", tiled=True), P(("a", "b")), P("a"), 8 * BLOCK * 3 // 4),
    "psum_scatter over b": (
        lambda x: jax.lax.psum_scatter(x, "b", scatter_dimension=0, tiled=True),
        P("a"),
        P(("a", "b")),
        8 * 3 * BLOCK // 4,
    ),
    "all_to_all over b": (
        lambda x: jax.lax.all_to_all(x, "b", 1, 0, tiled=True),
        P("a"),
        P(("a", "b"), None),
        8 * BLOCK * 3 // 4,
    ),
    "ppermute along b": (lambda x: jax.lax.ppermute(x, "b", [(0, 1), (1, 2)]), P("a"), P("a"), 4 * BLOCK),
    "ppermute to itself": (lambda x: jax.lax.ppermute(x, "a", [(0, 0), (1, 1)]), P("a"), P("a"), 0),
    "nothing": (lambda x: x + 1, P("a"), P("a"), 0),
}


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32])
def test_bytes_of_compiled_programs(name, dtype):
    function, in_spec, out_spec, received = COMPILED[name]
    assert bytes_received(compiled_text(function, in_spec, out_spec, dtype)) == received


def test_what_a_loop_sends_counts_as_often_as_it_iterates():
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))

    def add(total, part):
        return total + jax.lax.psum(part, "x"), None

    def loop(parts):
        outer = lambda total, _: (jax.lax.scan(add, total, parts)[0], None)  # noqa: E731
        return jax.lax.scan(outer, jnp.zeros(16), None, length=3)[0]

    program = jax.jit(jax.shard_map(loop, mesh=mesh, in_specs=P(None, "x"), out_specs=P()))
    argument = jax.ShapeDtypeStruct((5, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, "x")))
    text = program.lower(argument).compile().as_text()
    assert sum(found.times for found in collectives(text)) == 15
    assert bytes_received(text) == 15 * 4 * 2 * (16 * 4 // 4) * 3


UNKNOWN_LENGTH = """
%body (p: f32[16]) -> f32[16] {
  %a = f32[16]{0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
}
ENTRY %main (p: f32[16]) -> f32[16] {
  %w = f32[16]{0} while(%p), condition=%cond, body=%body
}"""


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="how often the computation or loop with the body body iterates"):
        bytes_received(UNKNOWN_LENGTH)


def test_every_branch_of_a_switch_counts():
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    branches = [lambda x: x, lambda x: jax.lax.psum(x, "x"), lambda x: 2 * jax.lax.psum(jnp.sin(x), "x")]
    choose = lambda i, x: jax.lax.switch(i, branches, x)  # noqa: E731
    run = jax.shard_map(choose, mesh=mesh, in_specs=(P(), P("x")), out_specs=P("x"), check_vma=False)
    text = jax.jit(run).lower(jnp.int32(0), jax.ShapeDtypeStruct((64,), jnp.float32)).compile().as_text()
    assert [found.times for found in collectives(text)] == [1, 1]


MESH = {"a": 2, "b": 4}
ALONG = {
    "psum over b": ("b",),
    "psum over both": ("a", "b"),
    "all_gather over a": ("a",),
    "all_to_all over b": ("b",),
    "ppermute along b": ("b",),
    "ppermute to itself": (),
}


@pytest.mark.parametrize("name", ALONG)
def test_axes_of_compiled_programs(name):
    function, in_spec, out_spec, _ = COMPILED[name]
    found = collectives(compiled_text(function, in_spec, out_spec, jnp.float32))
    assert {each.axes(MESH) for each in found} == {ALONG[name]}
    assert {each.dtypes for each in found} == {("f32",)}


def test_axes_where_the_partitioner_chose_the_groups():
    """It writes them as parts of a mesh of its own."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "tensor"))

    def shape(sizes, *axes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=NamedSharding(mesh, P(*axes)))

    def mlp(x, up, down):
        return (jnp.tanh(x @ up) @ down).sum()

    shapes = shape((16, 32), "data"), shape((32, 64), "data", "tensor"), shape((64, 32), "tensor", "data")
    found = collectives(jax.jit(mlp).lower(*shapes).compile().as_text())
    sizes = {"data": 2, "tensor": 4}
    assert {each.axes(sizes) for each in found if each.kind == "all-gather"} == {("data",)}
    assert ("tensor",) in {each.axes(sizes) for each in found if each.kind == "all-reduce"}


def scheduled(between: str, *, synchronous: bool = False) -> bool:
    """Whether an all-gather overlaps whose start and end have these lines between them."""
    config = f'backend_config={{"collective_backend_config":{{"is_sync":{str(synchronous).lower()}}}}}'
    text = f"""
ENTRY %main (p: f32[4], q: f32[8,8]) -> f32[16] {{
  %p = f32[4]{{0}} parameter(0)
  %q = f32[8,8]{{1,0}} parameter(1)
  %s = (f32[4]{{0}}, f32[16]{{0}}) all-gather-start(%p), {LISTED}, dimensions={{0}}, {config}
{between}
  %d = f32[16]{{0}} all-gather-done(%s)
  %after = f32[8,8]{{1,0}} fusion(%q), kind=kLoop, calls=%c
  ROOT %r = f32[16]{{0}} copy(%d)
}}"""
    return one(text).overlaps


def test_what_is_computed_between_start_and_end_overlaps():
    product = "  %m = f32[8,8]{1,0} dot(%q, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    assert scheduled(product)
    assert not scheduled(product, synchronous=True)
    assert not scheduled("  %b = f32[64]{0} bitcast(%q)")
    assert not scheduled("  %n = s32[] fusion(%i), kind=kLoop, calls=%count")
    assert not one(f"%a = f32[16]{{0}} all-gather(%p), {LISTED}, dimensions={{0}}").overlaps


def test_a_collective_that_an_asynchronous_call_runs_overlaps_from_there_on():
    text = f"""
%wrapped (p: f32[4]) -> f32[16] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %a = f32[16]{{0}} all-gather(%p), {LISTED}, dimensions={{0}}
}}
ENTRY %main (p: f32[4], q: f32[8,8]) -> f32[16] {{
  %p = f32[4]{{0}} parameter(0)
  %q = f32[8,8]{{1,0}} parameter(1)
  %s = ((f32[4]{{0}}), f32[16]{{0}}, u32[]) async-start(%p), calls=%wrapped
  %u = ((f32[4]{{0}}), f32[16]{{0}}, u32[]) async-update(%s), calls=%wrapped
  %m = f32[8,8]{{1,0}} fusion(%q), kind=kLoop, calls=%c
  ROOT %d = f32[16]{{0}} async-done(%u), calls=%wrapped
}}"""
    (found,) = collectives(text)
    assert (found.overlaps, found.times, found.result_bytes) == (True, 1, 64)


def test_a_loop_of_unknown_length_counts_as_the_bound():
    assert [each.times for each in collectives(UNKNOWN_LENGTH, loop_bound=3)] == [3]
