"""What devices held beside what the programs need of them, on CPU devices that are said to count."""

import itertools

import jax
import pytest

from hetjax.fit.held import PERSISTENT, TEMPORARIES, device_groups
from hetjax.fit.step_bytes import link_bytes, stage_bytes
from hetjax.meshes import Layout
from hetjax.schedule import Kind
from hetjax.schedule.actions import PROGRAMS
from hetjax.training.memory import memory_held, memory_lines
from tests.harness.alive import alive
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
        # Whole on every device, two bytes each.
        assert found.persistent["compute weights"] == 2 * sum(array.size for array in held.params.values())
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


def test_the_walk_of_a_schedule_holds_what_is_alive_after_each_action(trainer):
    assert_walk_is_alive(trainer)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize(
    ("layouts", "options"),
    [
        pytest.param(("0-1", "2-3"), {"schedule": "gpipe", "microbatches": 4}, id="gpipe"),
        pytest.param(("0-1", "2-3"), {"schedule": "zero_bubble", "microbatches": 4}, id="in two parts"),
        pytest.param(("0-1", "0-1"), {"schedule": "colocated"}, id="colocated"),
        pytest.param(("0-1", "2-3"), {"microbatches": {"llm": 8, "vision": 2}}, id="windows"),
        pytest.param(
            ("0-1", "0-1"), {"schedule": "colocated", "microbatches": {"llm": 4, "vision": 1}}, id="one window"
        ),
        pytest.param(
            ("0-1", "0-1"),
            {"schedule": "colocated", "compute_dtype": "bfloat16", "offload": ["vision"]},
            id="offload, colocated",
        ),
        pytest.param(
            ("0-1", "2-3"), {"schedule": "zero_bubble", "microbatches": 4, "offload": ["vision"]}, id="offload"
        ),
    ],
)
def test_the_walk_of_other_schedules_holds_what_is_alive_after_each_action(layouts, options):
    made = make_trainer(*(Layout(devices=devices, data=2) for devices in layouts), **options)
    made.compile(make_batch())
    assert_walk_is_alive(made)


def assert_walk_is_alive(trainer):
    step, batch = trainer.compiled, make_batch()
    # Arrays of a first state may share memory: zeros are zeros.
    state, _ = trainer.step(trainer.init(0), batch)
    devices = jax.devices()[:4]
    before = [alive(device) for device in devices]
    seen = []
    trainer.step(state, batch, observe=lambda action, _: seen.append((action, [alive(device) for device in devices])))
    for group in device_groups(step.schedule, stage_bytes(step, step.stages), link_bytes(step)):
        device = devices.index(next(each for each in devices if each.id == group.devices[0]))
        beside = ("prepare", "reduce", "end of step")
        walked = [each for each in group.moments if not each.action.endswith((*beside, " cut", " join"))]
        # Gradients that come late are made before a backward, of which they are no action.
        followed = [(one, after) for one, after in itertools.pairwise(walked) if one.action != "zeros"]
        moments = [*(one for one, _ in followed), walked[-1]]
        labels = [(moment.action, moment.stage) for moment in moments]
        touching = [(action, held[device]) for action, held in seen if (str(action), action.stage) in labels]
        assert [(str(action), action.stage) for action, _ in touching] == labels
        lasting = sum(moments[0].held[part] for part in ("master weights", "optimizer state", "buffers"))
        # Blanks of boundaries lie there from compilation on.
        for name, link in link_bytes(step).items():
            ends = {"source": step.links[name].source, "destination": step.links[name].destination}
            lasting += sum(link.blanks[end] for end, stage in ends.items() if stage in group.stages)
        leaving = 0
        for (action, held), (_, after) in zip(touching, followed, strict=False):
            # By the walk what goes to the host is gone after the next program or copy back; a CPU copies at once.
            if action.kind is Kind.OFFLOAD:
                moved = stage_bytes(step, step.stages)[action.stage].moved(action.part)
                leaving += sum(moved.values())
            elif action.kind in PROGRAMS:
                leaving = 0
            if after.action.startswith("R"):
                leaving = 0
            if action.kind is not Kind.UPDATE:
                expected = after.total - after.held[TEMPORARIES] - lasting - leaving
                # Beside it losses and sums of squares, a few numbers.
                assert 0 <= held - before[device] - expected < 100, action
