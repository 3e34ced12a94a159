"""How busy devices are, by arithmetic that a reader can follow."""

from types import SimpleNamespace

import pytest

from hetjax.execution.action_timer import ActionTimer
from hetjax.schedule import Kind, StageGraph
from hetjax.schedule.graph import StageEdge, StageNode
from hetjax.training import utilisation
from hetjax.training.utilisation import Utilisation, busy_seconds, idle_shares


def test_the_devices_of_a_module_are_busy_with_whatever_runs_on_them():
    graph = StageGraph(
        stages=(
            StageNode(name="vision", module="vision", index=0, devices=(0,)),
            StageNode(name="llm.0", module="llm", index=0, devices=(0, 1)),
            StageNode(name="llm.1", module="llm", index=1, devices=(2, 3)),
        ),
        edges=(
            StageEdge(name="vision->llm.0", source="vision", destination="llm.0"),
            StageEdge(name="llm.0->llm.1", source="llm.0", destination="llm.1"),
        ),
    )
    timer = ActionTimer()
    timer.seconds |= {
        ("vision", Kind.FORWARD): [1.0, 1.0],
        ("llm.0", Kind.FORWARD): [2.0, 1.0],
        ("llm.1", Kind.BACKWARD): [4.0],
        ("vision->llm.0", Kind.TRANSFER): [100.0],
        ("vision", Kind.OFFLOAD, None): [100.0],
    }
    # Device 0: 2 + 3 seconds, device 1: 3, devices 2 and 3: 4.
    assert busy_seconds(timer, graph) == {"vision": 5.0, "llm": (5 + 3 + 4 + 4) / 4}
    shares = idle_shares({"a": 5.0, "b": 2.0, "c": 12.0}, 10.0)
    assert shares == {"idle/a": 0.5, "idle/b": 0.8, "idle/c": 0.0}


def test_mfu_is_against_the_peak_of_all_devices_where_it_is_known(monkeypatch):
    step = SimpleNamespace()
    trainer = SimpleNamespace(compiled_steps=(step,), compiled_for=lambda batch: step)
    monkeypatch.setattr(utilisation, "model_flops", lambda step, packings: 989 * 10**12)

    def on(*kinds):
        devices = [SimpleNamespace(device_kind=kind) for kind in kinds]
        monkeypatch.setattr(utilisation, "devices_used", lambda trainer: devices)
        return Utilisation(trainer, {})

    pair = on("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3")
    assert pair.of(pair.flops({}), 2.0) == {"tflops_per_second": pytest.approx(494.5), "mfu": 0.25}
    assert on("cpu").of(10**12, 0.5) == {"tflops_per_second": 2.0}
