"""Programs that are alike are compiled once, on CPU devices that are said to be described only."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.compilation import compile_described, compiled_program
from hetjax.compilation.compiled_program import Program


@pytest.fixture(autouse=True)
def all_described(monkeypatch):
    monkeypatch.setattr(compiled_program, "is_described", lambda device: True)


def program(devices, shape=(2,), factor=2.0, spec=P("x")) -> Program:
    mesh = Mesh(np.array(devices).reshape(shape), ("x", "y")[: len(shape)])
    x = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=NamedSharding(mesh, spec))
    return Program("scale", lambda x: (factor * x, x.sum(axis=1)), mesh, x)


def test_equal_programs_on_two_meshes_are_compiled_once_and_each_names_its_own_mesh():
    first, second = program(jax.devices()[:2]), program(jax.devices()[2:4])
    assert second.compiled is first.compiled
    for one in (first, second):
        assert {each.sharding.mesh for each in one.outputs} == {one.mesh}
    assert [each.sharding.spec for each in second.outputs] == [each.sharding.spec for each in first.outputs]
    assert second.memory == first.memory


@pytest.mark.parametrize(
    "other",
    [{"factor": 3.0}, {"shape": (1, 2)}, {"spec": P()}],
    ids=["another function", "another mesh shape", "another sharding"],
)
def test_programs_that_differ_are_compiled_each(other):
    assert program(jax.devices()[2:4], **other).compiled is not program(jax.devices()[:2]).compiled


def test_devices_that_lie_in_other_hosts_make_another_program():
    class Placed:
        device_kind = "H100"

        def __init__(self, host):
            self.process_index = host

    class OnMesh:
        def __init__(self, *hosts):
            self.devices, self.shape = np.array([Placed(host) for host in hosts]), {"x": len(hosts)}

    lowered = program(jax.devices()[:2]).lower()
    key = lambda *hosts: compile_described._key(lowered, OnMesh(*hosts))  # noqa: E731
    assert key(0, 0) == key(5, 5) != key(0, 1) == key(3, 4)


def test_an_executable_is_dropped_with_its_last_program():
    made = program(jax.devices()[:2], factor=5.0)
    _ = made.compiled
    count = len(compile_described._compiled)
    del made, _
    gc.collect()
    assert len(compile_described._compiled) < count
