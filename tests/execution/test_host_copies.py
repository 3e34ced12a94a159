"""Modules that wait in the memory of the host: the same numbers to the bit, and arrays where they should be."""

import jax
import numpy as np
import optax
import pytest

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.checkpoint import Checkpoints
from hetjax.errors import ConfigError, HetjaxError, StateError
from hetjax.execution import host_copies
from hetjax.execution.action_timer import ActionTimer
from hetjax.meshes import Layout, Placement
from hetjax.schedule import Kind
from hetjax.schedule.actions import HOST_COPIES, Part
from tests.harness.alive import alive
from tests.harness.count_waits import count_waits
from tests.harness.plain_trainer import make_batch, make_optimizer, plain_modules
from tests.harness.small_modules import Encoder, Tower

DISJOINT = {"encoder": Layout(devices="0-1", data=2), "head": Layout(devices="2-3", fsdp=2)}
COLOCATED = {"encoder": Layout(devices="0-1", data=2), "head": Layout(devices="0-1", tensor=2)}
OVERLAPPING = {"encoder": Layout(devices="0-2", data=3), "head": Layout(devices="2-3", fsdp=2)}
TWO_STAGES = {"encoder": Layout(devices="0-1", data=2), "head": Layout(devices="0-1", stage=2)}

CASES = {
    "disjoint": (DISJOINT, {"schedule": "1f1b", "microbatches": 3}),
    "colocated": (COLOCATED, {"schedule": "colocated", "microbatches": 2, "compute_dtype": "bfloat16"}),
    "overlapping": (OVERLAPPING, {"schedule": "gpipe", "microbatches": 2}),
    "windows": (COLOCATED, {"schedule": "colocated", "microbatches": {"head": 6, "encoder": 2}}),
    "two stages": (TWO_STAGES, {"schedule": "zero_bubble", "microbatches": 3}),
    "frozen": (COLOCATED, {"schedule": "colocated", "microbatches": 2, "frozen": ["encoder"]}),
    "partly frozen": (COLOCATED, {"schedule": "bubble_fill", "frozen": ["encoder.up"], "compute_dtype": "bfloat16"}),
}
EVERY_TIME = ("windows", "overlapping", "frozen")


def make_trainer(layouts, **options) -> Trainer:
    modules = plain_modules()
    if layouts is TWO_STAGES:
        modules = {"encoder": Encoder, "head": Tower}
    graph = ModuleGraph(modules, [Edge("encoder.features", "head.features")])
    settings = {"optimizer": make_optimizer(), "max_grad_norm": 1.0, **options}
    return Trainer(graph, Placement(layouts), **settings)


def train(trainer: Trainer, state, steps: int = 3, observe=None):
    history = []
    for step in range(steps):
        state, metrics = trainer.step(state, make_batch("encoder", seed=step), observe=observe)
        history.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return state, history


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for module, weights in one.items():
        for path, array in weights.items():
            np.testing.assert_array_equal(array, other[module][path], err_msg=f"{module} {path}")


def kinds_of(tree) -> set[str]:
    return {array.sharding.memory_kind for array in jax.tree.leaves(tree) if isinstance(array, jax.Array)}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in EVERY_TIME else pytest.mark.slow) for case in CASES]
)
def test_offload_changes_no_bit(case):
    layouts, options = CASES[case]
    plain, offloaded = make_trainer(layouts, **options), make_trainer(layouts, offload=["encoder"], **options)
    expected, numbers = train(plain, plain.init())
    found, others = train(offloaded, offloaded.init())
    copies = [action for action in offloaded.schedule.actions if action.kind in HOST_COPIES]
    assert copies and not [action for action in plain.schedule.actions if action.kind in HOST_COPIES]
    assert others == numbers
    assert_same_weights(offloaded.weights(found), plain.weights(expected))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    assert kinds_of(found) == {"device"}


@pytest.fixture(scope="module")
def offloaded():
    made = make_trainer(COLOCATED, schedule="colocated", microbatches=2, compute_dtype="bfloat16", offload=["encoder"])
    made.compile(make_batch("encoder"))
    return made


def test_parts_lie_in_the_memory_of_the_host_between_their_copies_and_nowhere_else(offloaded):
    state, device = offloaded.init(), jax.devices()[0]
    encoder = state.stages["encoder"]
    masters = list(encoder.params.values())
    optimizer = [array for array in jax.tree.leaves(encoder.opt_state)]
    seen = []

    def look(action, dispatched):
        if action.kind in HOST_COPIES:
            # What was copied is there no more, though the caller still holds the state.
            gone = [array.is_deleted() for array in (*masters, *optimizer)]
            assert all(gone)
            seen.append((action, kinds_of(dispatched), alive(device), alive(device, kind="pinned_host")))

    after, _ = offloaded.step(state, make_batch("encoder"), observe=look)
    away = 0
    for action, kinds, _, on_host in seen:
        assert kinds == {"pinned_host" if action.kind is Kind.OFFLOAD else "device"}
        away += 1 if action.kind is Kind.OFFLOAD else -1
        assert (on_host > 0) == (away > 0)
    assert {action.part for action, *_ in seen} == set(Part) and away == 0
    assert kinds_of(after) == {"device"}
    with pytest.raises(StateError, match="consumed"):
        offloaded.step(state, make_batch("encoder"))


def test_copies_make_no_step_wait_and_no_array_go_to_the_host_to_be_read(offloaded):
    state, batch = offloaded.init(), make_batch("encoder")
    state, _ = offloaded.step(state, batch)
    with pytest.MonkeyPatch.context() as patch, count_waits(patch) as waits:
        offloaded.step(state, batch)
        assert list(waits) == []


def test_gradients_alone_keep_the_state(offloaded):
    state, batch = offloaded.init(), make_batch("encoder")
    loss, gradients = offloaded.loss_and_gradients(state, batch)
    again, same = offloaded.loss_and_gradients(state, batch)
    assert loss == again
    assert_same_weights(gradients, same)
    plain = make_trainer(COLOCATED, schedule="colocated", microbatches=2, compute_dtype="bfloat16")
    expected_loss, expected = plain.loss_and_gradients(plain.init(), batch)
    assert loss == expected_loss
    assert_same_weights(gradients, expected)
    offloaded.step(state, batch)


def test_a_checkpoint_between_steps_restores_to_the_same_run(offloaded, tmp_path):
    middle, _ = train(offloaded, offloaded.init(), 2)
    checkpoints = Checkpoints(tmp_path, keep=1, trainer=offloaded)
    checkpoints.save(middle, {})
    # The next step frees what is being written.
    end, history = train(offloaded, middle, 2)
    checkpoints.wait()
    restored, _ = checkpoints.restore()
    checkpoints.close()
    other, others = train(offloaded, restored, 2)
    assert others == history
    assert_same_weights(offloaded.weights(other), offloaded.weights(end))


def test_the_timer_counts_copies_by_part_and_apart_from_programs(offloaded):
    state, timer = offloaded.init(), ActionTimer()
    offloaded.step(state, make_batch("encoder"), observe=timer.start(state))
    costs = timer.costs()
    for part in Part:
        assert costs.of["encoder", Kind.OFFLOAD, part] > 0 and costs.of["encoder", Kind.RELOAD, part] > 0
    totals = timer.by_module(offloaded.schedule.graph)
    copies = [seconds for (_, kind, *_), all_of in timer.seconds.items() for seconds in all_of if kind in HOST_COPIES]
    assert totals["host_copies"] == pytest.approx(sum(copies))


def test_modules_that_cannot_wait_are_refused_before_anything_is_compiled():
    for modules, message in (
        (["audio"], "offload names module 'audio', which the graph lacks; its modules are encoder, head"),
        (["head"], "offload names module 'head', which holds the loss"),
    ):
        with pytest.raises(HetjaxError, match=message):
            make_trainer(DISJOINT, offload=modules)


def test_devices_without_memory_of_the_host_are_refused(monkeypatch):
    monkeypatch.setattr(host_copies, "_HOST_KINDS", ("other_host",))
    host_copies.host_memory_kind.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"memory of the host .*other_host.* has device, .*; leave offload out"):
            make_trainer(DISJOINT, offload=["encoder"])
    finally:
        host_copies.host_memory_kind.cache_clear()


def test_a_module_without_anything_to_move_is_refused():
    class Nothing(Encoder):
        def __init__(self, rngs):
            del rngs

        def __call__(self, x):
            return {"features": x[:, :1] + np.zeros((1, 8), np.float32)}

    graph = ModuleGraph(
        {"encoder": Nothing, "head": plain_modules()["head"]}, [Edge("encoder.features", "head.features")]
    )
    with pytest.raises(ConfigError, match="offload names module 'encoder', which has no weights to move"):
        Trainer(graph, Placement(DISJOINT), optimizer=optax.sgd(1), offload=["encoder"])
