"""Modules that wait in the memory of their hosts, in a job of two processes."""

import pytest

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.meshes import Layout, Placement
from tests.harness.plain_trainer import make_batch, make_optimizer, plain_modules
from tests.harness.processes import run_processes

# Two devices in each process: the encoder in both, or in the first alone, of which the second then has nothing.
PLACEMENTS = (
    {"encoder": Layout(devices="0-3", fsdp=2, data=2), "head": Layout(devices="2-3", fsdp=2)},
    {"encoder": Layout(devices="0-1", data=2), "head": Layout(devices="1-2", fsdp=2)},
)


def train_with_and_without():
    graph = ModuleGraph(plain_modules(), [Edge("encoder.features", "head.features")])
    found = []
    for layouts in PLACEMENTS:
        for offload in ((), ("encoder",)):
            trainer = Trainer(
                graph, Placement(layouts), optimizer=make_optimizer(), schedule="gpipe", microbatches=3, offload=offload
            )
            state, losses, kinds = trainer.init(), [], set()

            def look(action, dispatched, kinds=kinds):
                if action.part is not None:
                    kinds |= {(action.kind.value, x.sharding.memory_kind) for x in dispatched}

            for seed in range(2):
                state, metrics = trainer.step(state, make_batch("encoder", seed=seed), observe=look)
                losses.append(float(metrics["loss"]))
            weights = {
                f"{module}/{path}": array.tolist()
                for module, arrays in trainer.weights(state).items()
                for path, array in arrays.items()
            }
            found.append({"losses": losses, "weights": weights, "kinds": sorted(kinds)})
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_offload_changes_no_bit_over_processes():
    results = run_processes(2, train_with_and_without, devices=2, timeout=200)
    both = [("offload", "pinned_host"), ("reload", "device")]
    for process, result in enumerate(results):
        for place in range(len(PLACEMENTS)):
            plain, offloaded = result[2 * place : 2 * place + 2]
            assert plain["losses"] == offloaded["losses"] and plain["weights"] == offloaded["weights"]
            takes_part = place == 0 or process == 0
            assert [tuple(kind) for kind in offloaded["kinds"]] == (both if takes_part else [])
            assert plain["kinds"] == []
    assert results[0][0]["losses"] == results[1][0]["losses"]
