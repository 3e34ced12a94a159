"""Checkpoints of a pattern of layers: whole arrays, whatever cut wrote them, and weights that no cut changes."""

import jax
import numpy as np
import optax
import pytest

from hetjax import ModuleGraph, Trainer
from hetjax.checkpoint import Checkpoints
from hetjax.meshes import Layout, Placement
from hetjax.models import NemotronH
from hetjax.stages.flat_state import by_path
from tests.harness.models.tiny_hybrid import HYBRID

LAYOUTS = (
    Layout(devices="0"),
    Layout(devices="0-3", stage=2, fsdp=2, layers=[2, 1]),
    Layout(devices="0-3", stage=2, tensor=2, layers=[1, 2]),
    Layout(devices="1", stage=1, chunks=3),
    Layout(expert=4, tensor=2),
)


def trainer_on(layout: Layout) -> Trainer:
    graph = ModuleGraph({"llm": lambda rngs: NemotronH(HYBRID, rngs=rngs)})
    return Trainer(graph, Placement({"llm": layout}), optimizer=optax.adamw(1e-2))


def save(folder, trainer, state) -> None:
    checkpoints = Checkpoints(folder, keep=1, trainer=trainer)
    checkpoints.save(state, {})
    checkpoints.close()


@pytest.mark.slow
@pytest.mark.quick
def test_a_pattern_restores_on_every_other_cut_bit_for_bit(tmp_path):
    trainers = [trainer_on(layout) for layout in LAYOUTS]
    first = trainers[0].init(seed=3)
    weights = trainers[0].weights(first)["llm"]
    # What a step would have left: no two entries alike, in the optimizer's state and in the buffers too.
    changed = {
        name: jax.tree.map(lambda x: (x + np.arange(x.size, dtype=x.dtype).reshape(x.shape)).astype(x.dtype), stage)
        for name, stage in first.stages.items()
    }
    first = type(first)(step=4, stages=changed)
    save(tmp_path / "0", trainers[0], first)
    want = trainers[0].weights(first)["llm"]
    assert any((want[path] != weights[path]).any() for path in weights)
    for i, trainer in enumerate(trainers[1:]):
        made = trainer.weights(trainer.init(seed=3))["llm"]
        for path, array in weights.items():
            np.testing.assert_array_equal(made[path], array)
        state, _ = Checkpoints(tmp_path / str(i), keep=1, trainer=trainer).restore()
        for path, array in trainer.weights(state)["llm"].items():
            np.testing.assert_array_equal(array, want[path])
        save(tmp_path / str(i + 1), trainer, state)
    last, _ = Checkpoints(tmp_path / str(len(LAYOUTS) - 1), keep=1, trainer=trainers[0]).restore()
    assert last.step == 4
    before, after = (by_path([vars(stage) for stage in state.stages.values()]) for state in (first, last))
    assert before.keys() == after.keys()
    for path, array in before.items():
        np.testing.assert_array_equal(np.asarray(after[path]), np.asarray(array), err_msg=path)
