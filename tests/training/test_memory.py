"""What devices held beside what the programs need of them, on CPU devices that are said to count."""

import jax
import pytest

from hetjax.fit.held import PERSISTENT
from hetjax.fit.step_bytes import link_bytes, stage_bytes
from hetjax.meshes import Layout
from hetjax.training.memory import memory_held, memory_lines
from tests.harness.compiled_trainer import make_trainer
from tests.harness.parity.problem import make_batch


@pytest.fixture(scope="module")
def trainer():
    made = make_trainer(Layout(devices="0-1", data=2), Layout(devices="1"), compute_dtype="bfloat16")
    made.compile(make_batch())
    return made


def test_a_cpu_counts_no_memory(trainer):
    assert memory_held(trainer) == {}


def test_what_lasts_is_what_the_state_holds_on_a_device(trainer):
    state = trainer.init(0)
    for name, found in stage_bytes(trainer.compiled, ()).items():
        device = trainer.compiled.stages[name].mesh.devices.flat[0]
        held = state.stages[name]
        on_device = sum(
            shard.data.nbytes
            for array in jax.tree.leaves((held.params, held.buffers, held.opt_state))
            for shard in array.addressable_shards
            if shard.device == device
        )
        kept = [part for part in PERSISTENT if part not in ("compute weights", "gradients")]
        assert sum(found.persistent[part] for part in kept) == on_device
        assert found.persistent["compute weights"] * 2 == found.persistent["master weights"]
        assert found.calls == {}


def test_a_stage_keeps_the_residuals_that_its_forward_returns_and_takes_its_programs_memory(trainer):
    step = trainer.compiled
    found = stage_bytes(step, step.stages)
    for name, program in step.programs.items():
        kept = sum(shape.size * shape.dtype.itemsize for shape in program.residual_shapes)
        assert found[name].residuals >= kept // step.stages[name].mesh.size > 0
        memory = program.programs["backward"].memory
        assert found[name].calls["backward"] == (memory.temporary, memory.outputs - memory.donated)
        assert set(found[name].calls) == {"forward", "backward", "prepare", "reduce", "update"}


def test_a_link_holds_its_tensor_at_either_end(trainer):
    step = trainer.compiled
    for name, found in link_bytes(step).items():
        leaving = step.programs[step.links[name].source].outputs[step.links[name].source_port]
        whole = leaving.size * leaving.dtype.itemsize
        assert (found.source, found.destination) == (whole // 2, whole)  # over two devices, and whole on one


def test_the_fullest_device_of_each_group_is_named_with_both_counts(trainer):
    stats = {0: 5 << 20, 1: 9 << 20}
    lines = list(
        memory_lines(trainer, {id: {"peak_bytes_in_use": held, "bytes_limit": 1 << 30} for id, held in stats.items()})
    )
    assert [line.partition(", by")[0] for line in lines] == [
        "memory: device 0 (vision) held 5.0 MiB of 1.0 GiB at most",
        "memory: device 1 (vision, llm) held 9.0 MiB of 1.0 GiB at most",
    ]
    assert all("by its programs' count" in line for line in lines)
