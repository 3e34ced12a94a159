"""A step never waits and nothing bounces through the host; tensors in flight are freed."""

import gc

import jax
import numpy as np
import pytest

from hetjax import Trainer
from hetjax.meshes import Layout, Placement
from tests.harness.choices import others_slow
from tests.harness.count_waits import count_waits
from tests.harness.parity.problem import make_batch, make_graph, make_optimizer

PLACEMENTS = {
    "disjoint, fan-in": {"vision": Layout(devices="0-3", data=4), "llm": Layout(devices="4-7", data=2, tensor=2)},
    "colocated, two stages": {"vision": Layout(data=8), "llm": Layout(stage=2, data=2, tensor=2)},
    "overlapping, permuted": {
        "vision": Layout(devices="0-3", data=2, tensor=2),
        "llm": Layout(devices="3,2,4,5", data=4),
    },
}


def make_trainer(layouts, **options) -> Trainer:
    return Trainer(make_graph(), Placement(layouts), optimizer=make_optimizer(), **{"microbatches": 2, **options})


@pytest.mark.parametrize("placement", others_slow(PLACEMENTS, ["disjoint, fan-in", "overlapping, permuted"]))
def test_a_step_neither_waits_nor_reads_an_array_on_the_host(placement, monkeypatch):
    check_never_waits(make_trainer(PLACEMENTS[placement], max_grad_norm=1.0), monkeypatch)


@pytest.mark.slow
@pytest.mark.quick
def test_a_step_with_windows_neither_waits_nor_reads_an_array_on_the_host(monkeypatch):
    """Cut in programs and by views: two microbatches lie on each half of the encoder's devices."""
    trainer = make_trainer(PLACEMENTS["disjoint, fan-in"], max_grad_norm=1.0, microbatches={"llm": 16, "vision": 4})
    check_never_waits(trainer, monkeypatch)


def check_never_waits(trainer: Trainer, monkeypatch) -> None:
    state, batch = trainer.init(), make_batch()
    state, _ = trainer.step(state, batch)
    with count_waits(monkeypatch) as waits:
        for _ in range(2):
            state, metrics = trainer.step(state, batch)
        assert waits == []
    with count_waits(monkeypatch) as waits, jax.transfer_guard_device_to_host("allow"):
        float(metrics["loss"])
        assert waits, "the counter sees a read where there is one"


def test_a_bounce_through_the_host_would_be_counted(monkeypatch):
    devices = np.array(jax.devices())
    spec = jax.sharding.PartitionSpec("x")
    source, destination = (
        jax.sharding.NamedSharding(jax.sharding.Mesh(d, ("x",)), spec) for d in (devices[:4], devices[4:6])
    )
    x = jax.device_put(np.arange(8.0), source)
    with count_waits(monkeypatch) as waits, jax.transfer_guard_device_to_host("allow"):
        jax.device_put(x, destination)
        assert "_value" in waits


def test_residuals_are_freed_when_their_backward_is_dispatched():
    """With 1f1b, the last stage holds one microbatch's residuals, the first at most two."""
    trainer = make_trainer({"vision": Layout(devices="0", data=1), "llm": Layout(devices="1")}, microbatches=4)
    state, batch = trainer.init(), make_batch()
    trainer.compile(batch)
    programs = trainer.compiled.programs
    shapes = {name: {(r.shape, r.dtype) for r in program.residual_shapes} for name, program in programs.items()}
    others = {(a.shape, a.dtype) for stage in trainer.stages for a in stage.params.values()}
    only = {
        name: min(shapes[name] - shapes[other] - others, key=str)
        for name, other in (("llm", "vision"), ("vision", "llm"))
    }
    most = dict.fromkeys(only, 0)
    gc.collect()  # arrays of other tests

    def observe(action, result):
        for name, signature in only.items():
            device = trainer.compiled.stages[name].mesh.devices.flat[0]
            alive = [a for a in jax.live_arrays() if (a.shape, a.dtype) == signature and a.devices() == {device}]
            count = sum((r.shape, r.dtype) == signature for r in programs[name].residual_shapes)
            most[name] = max(most[name], len(alive) / count)

    trainer.step(state, batch, observe=observe)
    assert most["llm"] <= 1
    assert 1 <= most["vision"] <= 2
