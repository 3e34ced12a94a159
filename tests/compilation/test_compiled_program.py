"""One class for a compiled program: what it says of itself, and when it does what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.compilation.compiled_program import Program
from hetjax.compilation.hlo import collectives

MESH = Mesh(np.array(jax.devices()[:2]), ("x",))
SPLIT, WHOLE = NamedSharding(MESH, P("x")), NamedSharding(MESH, P())
X = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=SPLIT)


def test_nothing_happens_before_it_is_asked_for_and_each_thing_once():
    traces = []

    def double(x):
        traces.append(x.shape)
        return 2 * x

    program = Program("double", double, MESH, X, out_shardings=SPLIT)
    assert traces == [] and not program.is_compiled
    assert program.traced.out_info.shape == (8, 4)
    assert not program.is_compiled
    compiled = program.compile().compiled
    assert program.is_compiled
    assert program.compile().compiled is compiled
    assert traces == [(8, 4)]


def test_a_call_compiles_and_gives_what_the_function_gives():
    program = Program("rows", lambda x: {"sum": x.sum(axis=1)}, MESH, X, out_shardings={"sum": WHOLE})
    value = np.arange(32, dtype=np.float32).reshape(8, 4)
    found = program(jax.device_put(value, SPLIT))["sum"]
    np.testing.assert_array_equal(found, value.sum(axis=1))
    assert found.sharding == WHOLE
    assert program.outputs == {"sum": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=WHOLE)}


def test_its_text_names_its_collectives():
    program = Program("gather", lambda x: x, MESH, X, out_shardings=WHOLE)
    assert [each.kind for each in collectives(program.text)] == ["all-gather"]


def test_its_memory_counts_what_one_device_holds_and_donated_arguments_once():
    program = Program("add", lambda x, y: x + y, MESH, X, X, donate=1, out_shardings=SPLIT)
    memory, part = program.memory, 8 * 4 * 4 // 2
    assert (memory.arguments, memory.outputs, memory.donated) == (2 * part, part, part)
    assert memory.total == 2 * part + memory.temporary + memory.code


def test_donated_arguments_are_consumed():
    program = Program("add", lambda x, y: x + y, MESH, X, X, donate=1, out_shardings=SPLIT)
    x, y = (jax.device_put(np.ones((8, 4), np.float32), SPLIT) for _ in range(2))
    program(x, y)
    assert y.is_deleted() and not x.is_deleted()


def test_arguments_of_another_shape_are_refused():
    program = Program("double", lambda x: 2 * x, MESH, X)
    with pytest.raises(TypeError):
        program(jax.device_put(np.ones((4, 4), np.float32), SPLIT))
