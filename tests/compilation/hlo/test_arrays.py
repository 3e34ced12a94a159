"""The arrays that programs make in memory, read from programs compiled here and from lines as XLA writes them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from hetjax.compilation.hlo import MadeArrays, Shape, largest_arrays, oversized, read_program

TEXT = """
%fused (p: f32[8,64,64]) -> bf16[8,64] {
  %p = f32[8,64,64]{2,1,0} parameter(0)
  %hidden = f32[8,64,64]{2,1,0} exponential(%p)
  ROOT %r = bf16[8,64]{1,0} reduce(%hidden, %p), dimensions={2}, to_apply=%add
}
%filled (p: bf16[6,8,64], x: bf16[8,64], i: s32[]) -> (bf16[6,8,64], bf16[8,64]) {
  %p = bf16[6,8,64]{2,1,0} parameter(0)
  %x = bf16[8,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %b = bf16[1,8,64]{2,1,0} bitcast(%x)
  %u = bf16[6,8,64]{2,1,0} dynamic-update-slice(%p, %b, %i, %i, %i)
  ROOT %t = (bf16[6,8,64]{2,1,0}, bf16[8,64]{1,0}) tuple(%u, %x)
}
%body (t: (bf16[6,8,64], s32[])) -> (bf16[6,8,64], s32[]) {
  %t = (bf16[6,8,64]{2,1,0}, s32[]) parameter(0)
  %stack = bf16[6,8,64]{2,1,0} get-tuple-element(%t), index=0
  %i = s32[] get-tuple-element(%t), index=1
  %x = bf16[8,64]{1,0} constant({...})
  %f = (bf16[6,8,64]{2,1,0}, bf16[8,64]{1,0}) fusion(%stack, %x, %i), kind=kLoop, calls=%filled
  %g = bf16[6,8,64]{2,1,0} get-tuple-element(%f), index=0
  ROOT %r = (bf16[6,8,64]{2,1,0}, s32[]) tuple(%g, %i)
}
%condition (t: (bf16[6,8,64], s32[])) -> pred[] {
  %t = (bf16[6,8,64]{2,1,0}, s32[]) parameter(0)
  ROOT %c = pred[] constant(true)
}
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %a = f32[999] add(%x, %y)
}
ENTRY %main (p: f32[8,64,64], q: bf16[2,64]) -> bf16[16,64] {
  %p = f32[8,64,64]{2,1,0} parameter(0), metadata={op_name="params[\\'mlp/up\\']"}
  %q = bf16[2,64]{1,0} parameter(1), metadata={op_name="x"}
  %zeros = bf16[6,8,64]{2,1,0} broadcast(%q), dimensions={}
  %f = bf16[8,64]{1,0} fusion(%p), kind=kInput, calls=%fused, metadata={op_name="jit(f)/jvp(norm)/reduce_sum"}
  %s = (bf16[8,64]{1,0}, bf16[16,64]{1,0}) all-gather-start(%f), replica_groups={{0,1}}, dimensions={0}
  %d = bf16[16,64]{1,0} all-gather-done(%s)
  %w = (bf16[6,8,64]{2,1,0}, s32[]) while(%zeros), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"6"}}
  ROOT %r = bf16[16,64]{1,0} bitcast(%d)
}"""


def test_what_is_in_fusions_views_and_arguments_is_left_out():
    found = largest_arrays(read_program(TEXT))
    assert {str(each.shape): (each.bytes, each.made_by, each.times, each.slices) for each in found} == {
        "bf16[6,8,64]": (6144, (("broadcast", 1), ("fusion dynamic-update-slice + parameter", 1)), 1 + 6, 6),
        "bf16[16,64]": (2048, (("all-gather-start", 1),), 1, 1),
        "bf16[8,64]": (1024, (("fusion reduce", 1), ("fusion dynamic-update-slice + parameter", 1)), 1 + 6, 1),
    }
    assert [each.bytes for each in found] == sorted((each.bytes for each in found), reverse=True)


def test_only_so_many_as_asked_for():
    assert [str(each.shape) for each in largest_arrays(read_program(TEXT))[:2]] == ["bf16[6,8,64]", "bf16[16,64]"]


def test_scores_of_plain_attention_are_the_largest_array_of_its_program():
    def attend(query, key, value):
        with jax.named_scope("attention"):
            scores = jnp.einsum("bshk,bthk->bhst", query, key)
            return jnp.einsum("bhst,bthk->bshk", jax.nn.softmax(scores), value)

    shape = jax.ShapeDtypeStruct((1, 96, 2, 8), jnp.float32)
    program = read_program(jax.jit(attend).lower(shape, shape, shape).compile().as_text())
    largest = largest_arrays(program)[0]
    assert sorted(largest.shape.dims) == [1, 2, 96, 96] or sorted(largest.shape.dims) == [2, 96, 96]
    assert (largest.shape.dtype, largest.bytes, largest.layer) == ("f32", 2 * 96 * 96 * 4, "attention")


def made(*dims: int, slices: int = 1) -> MadeArrays:
    return MadeArrays(shape=Shape("bf16", dims), made_by=(("copy", 1),), op_names=(), times=1, slices=slices)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (made(4, 1024), None),
        (made(8, 1024), "16384 bytes, where 8192 is the most"),
        (made(8, 1024, slices=8), None),
        (made(48, 1024, slices=8), "98304 bytes in 8 parts, where 8192 is the most"),
        (made(1, 48, 48), "two dims of a sequence's length: 48 and 48"),
        (made(48, 2, 24), "two dims of a sequence's length: 48 and 24"),
        (made(48, 8), None),
        (made(24, 64), None),
    ],
)
def test_arrays_that_are_larger_than_they_should_be(array, reason):
    found = oversized([array], weight_bytes=2048, activation_bytes=1000, sequence_lengths={48, 24})
    assert found == ([] if reason is None else [(array, reason)])


def test_a_weight_as_wide_as_a_sequence_is_long_is_not_taken_for_scores():
    limits = {"weight_bytes": 6 * 48 * 48 * 2, "activation_bytes": 0, "sequence_lengths": {48}}
    weights = [Shape("bf16", (6, 48, 48))]
    assert oversized([made(1, 48, 48)], **limits, known=weights) == []
    assert len(oversized([made(5, 48, 48)], **limits, known=weights)) == 1
    assert len(oversized([made(1, 48, 48)], **limits)) == 1


def test_a_width_that_is_a_length_elsewhere_is_none_beside_another_length():
    limits = {"weight_bytes": 2**20, "activation_bytes": 0, "sequence_lengths": {48, 24}}
    assert oversized([made(3, 24, 48)], **limits, known=[Shape("bf16", (2, 48, 24))]) == []
    assert len(oversized([made(3, 48, 48)], **limits, known=[Shape("bf16", (2, 48, 24))])) == 1


def test_workspaces_of_libraries_have_a_size_of_their_own():
    limits = {"weight_bytes": 100, "activation_bytes": 100, "sequence_lengths": ()}
    workspace = MadeArrays(
        shape=Shape("s8", (4096,)), made_by=(("__cublas$lt$matmul", 1),), op_names=(), times=1, slices=1
    )
    assert oversized([workspace], **limits) == []
    assert len(oversized([dataclasses.replace(workspace, made_by=(("broadcast", 1),))], **limits)) == 1
