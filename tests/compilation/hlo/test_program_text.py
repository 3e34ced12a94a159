"""A compiled program's text taken apart: lines, computations, and where they come from."""

import jax
import jax.numpy as jnp
import pytest

from hetjax.compilation.hlo import Shape, read_program
from hetjax.compilation.hlo.calls import CallCounts
from hetjax.compilation.hlo.source_frames import Frame


def one(line: str):
    (found,) = read_program(line).computations[""].instructions
    return found


def test_a_line_is_taken_apart():
    found = one(
        "  ROOT %pallas.call-1 = (bf16[2,8]{1,0:T(8,128)(2,1)}, /*index=1*/f32[2]{0}) "
        "custom-call(%q.1, /*index=1*/%k-2), "
        'custom_call_target="t(x)", operand_layout_constraints={bf16[2,8]{1,0}}, control-predecessors={%a}, '
        'metadata={op_name="jit(f)/g[a=\\"(\\"]/mul" stack_frame_id=4}, backend_config={ir = "ML\\0A, metadata={}"}'
    )
    assert (found.name, found.opcode, found.operands) == ("pallas.call-1", "custom-call", ("q.1", "k-2"))
    assert [str(shape) for shape in found.shapes] == ["bf16[2,8]", "f32[2]"]
    assert (found.is_root, found.frame, found.custom_call_target) == (True, 4, "t(x)")
    assert found.op_name == 'jit(f)/g[a=\\"(\\"]/mul'
    assert found.backend_config == '{ir = "ML\\0A, metadata={}"}'
    assert found.attributes.endswith("control-predecessors={%a}")


def test_operands_may_be_written_with_their_shapes():
    found = one("%a = f32[2]{0} add(f32[2]{0:T(128)} %x, (f32[], s32[]{:T(128)}) %y), to_apply=%z")
    assert (found.operands, found.attributes) == (("x", "y"), ", to_apply=%z")


@pytest.mark.parametrize(
    ("written", "dims", "size"),
    [("f32[]", (), 4), ("bf16[<=8,4]", (8, 4), 64), ("pred[3]", (3,), 3), ("s4[8]", (8,), 4), ("f8e4m3fn[4]", (4,), 4)],
)
def test_shapes(written, dims, size):
    (shape,) = one(f"%a = {written} copy(%p)").shapes
    assert (shape.dims, shape.bytes) == (dims, size)


def test_tokens_are_no_arrays():
    assert one("%a = (token[], f32[2]) after-all(%p)").shapes == (Shape("f32", (2,)),)


def test_a_copy_to_the_host_makes_nothing_on_the_device():
    found = one("%c = (bf16[8,4]{1,0:S(5)}, bf16[8,4]{1,0}, u32[]) copy-start(%a)")
    assert found.results == (Shape("bf16", (8, 4), on_host=True),)
    assert [shape.on_host for shape in found.shapes] == [True, False, False]


def compiled_loop():
    def body(x, weight):
        return jnp.tanh(x @ weight), None

    def f(x, weights):
        return jax.lax.scan(body, x, weights)[0]

    shapes = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((5, 16, 16), jnp.float32)
    return read_program(jax.jit(f).lower(*shapes).compile().as_text())


def test_a_compiled_loop_is_called_by_its_entry():
    program, counts = compiled_loop(), CallCounts(compiled_loop())
    loop = next(each for each in program.computations[program.entry].instructions if each.opcode == "while")
    times = {
        call.how: counts(call.callee) for call in counts.calls[program.entry] if call.instruction.name == loop.name
    }
    assert times == {"body": 5, "condition": 6}
    assert set(counts.materialized()) >= {program.entry, *(call.callee for call in counts.calls[program.entry][:0])}
    (product,) = (
        (name, each)
        for name, computation in program.computations.items()
        for each in computation.instructions
        if each.opcode == "dot"
    )
    assert counts(product[0]) == 5
    functions = [frame.function for frame in program.frames.stack(product[1].frame)]
    assert functions[:2] == ["compiled_loop.<locals>.body", "compiled_loop.<locals>.f"]
    assert program.frames.stack(product[1].frame)[0].file == __file__


def test_frames_follow_their_callers():
    text = """HloModule m
FileNames
1 "/a.py"

FunctionNames
1 "main"
2 "Block.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=0 end_column=0}
2 {file_name_id=1 function_name_id=2 line=3 end_line=4 column=2 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=2 parent_frame_id=2}

ENTRY %e (p: f32[]) -> f32[] {
  ROOT %p = f32[] parameter(0)
}"""
    frames = read_program(text).frames
    assert frames.stack(3) == (Frame("Block.__call__", "/a.py", 3), Frame("main", "/a.py", 7))
    assert frames.stack(1) == (Frame("main", "/a.py", 7),)
    assert frames.stack(0) == frames.stack(9) == ()


def test_a_computation_that_nothing_calls_is_an_error():
    text = "%lost (p: f32[]) -> f32[] {\n  ROOT %p = f32[] parameter(0)\n}\nENTRY %e (p: f32[]) -> f32[] {\n}"
    with pytest.raises(ValueError, match="the body lost iterates: nothing calls it"):
        CallCounts(read_program(text))("lost")
