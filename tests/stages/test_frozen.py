"""Parts of a module that train while the rest stays: what they cost, and that they get the numbers of the whole."""

import functools

import jax
import numpy as np
import optax
import pytest

from hetjax import Trainer
from hetjax.errors import ConfigError, GraphError
from hetjax.execution.flops import backward_factor
from hetjax.meshes import Layout, Placement
from hetjax.stages.frozen import frozen_paths
from tests.harness.choices import others_slow
from tests.harness.parity.oracle import relative_error
from tests.harness.parity.problem import make_batch, make_graph

PLACEMENTS = {
    "one device": {"vision": Layout(devices="0"), "llm": Layout(devices="0")},
    "three meshes": {"vision": Layout(devices="0-3", data=2, fsdp=2), "llm": Layout(devices="4-7", stage=2, tensor=2)},
}


def make_trainer(placement: str = "one device", **options) -> Trainer:
    return Trainer(make_graph(), Placement(PLACEMENTS[placement]), optimizer=optax.adamw(1e-2), **options)


def test_names_stand_for_modules_and_for_parts_by_path():
    frozen = frozen_paths(make_graph(), trained=["vision.projector", "llm"], frozen=["llm.layers.block.mlp"])
    assert {path.partition("/")[0] for path in frozen["vision"]} == {"patch", "positions", "layers", "norm"}
    assert frozen["llm"] and all(path.startswith("layers/block/mlp/") for path in frozen["llm"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"frozen": ["audio"]}, ConfigError, "frozen names module 'audio'"),
        ({"trained": ["vision.projctor"]}, ConfigError, "its parts are layers, norm, patch, positions, projector"),
        ({"trained": "vision"}, ConfigError, "trained='vision' is one string"),
        ({"trained": ["llm"], "frozen": ["llm"]}, GraphError, "leave at least one to train"),
    ],
)
def test_a_name_without_weights_is_refused(options, error, message):
    with pytest.raises(error, match=message.replace("'", ".")):
        frozen_paths(make_graph(), **options)


@functools.cache
def whole_gradients():
    whole = make_trainer()
    return whole.loss_and_gradients(whole.init(0), make_batch())[1]


@pytest.mark.parametrize("placement", others_slow(PLACEMENTS, ["three meshes"]))
def test_a_part_that_trains_gets_the_gradients_of_the_whole_and_the_rest_stays(placement):
    batch, expected = make_batch(), whole_gradients()
    trainer = make_trainer(placement, trained=["vision.projector", "llm.layers"], microbatches=2)
    _, found = trainer.loss_and_gradients(trainer.init(0), batch)
    assert {path.partition("/")[0] for path in found["vision"]} == {"projector"}
    assert {path.partition("/")[0] for path in found["llm"]} == {"layers"}
    for module, gradients in found.items():
        for path, gradient in gradients.items():
            assert relative_error(gradient, expected[module][path]) < 1e-5, (module, path)
    state = trainer.init(0)
    before = trainer.weights(state)
    state, _ = trainer.step(state, batch)
    for module, weights in trainer.weights(state).items():
        for path, weight in weights.items():
            same = np.array_equal(weight, before[module][path])
            assert same == (path not in found[module]), (module, path)


def test_a_frozen_part_has_no_optimizer_state_and_no_master_copy():
    trainer = make_trainer(trained=["vision.projector", "llm"], compute_dtype="bfloat16")
    (vision,) = [stage for stage in trainer.stages if stage.module == "vision"]
    state = trainer.init(0).stages["vision"]
    assert {path: array.dtype.name for path, array in state.params.items()} == {
        path: "float32" if path.startswith("projector/") else "bfloat16" for path in vision.params
    }
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)}
    assert any("projector" in path for path in paths) and not any("layers" in path for path in paths)


def test_a_frozen_body_costs_its_forward_alone():
    batch = make_batch()
    step = make_trainer(trained=["vision.projector", "llm"]).trace(batch).step
    assert 0 < backward_factor(step, "vision") < 1
    assert backward_factor(step, "llm") == 2
