"""What an optimizer sees of a module, and what its state is like."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from hetjax import ModuleGraph, Trainer
from hetjax.checkpoint import Checkpoints
from hetjax.config.build import build_graph
from hetjax.meshes import Layout, Placement
from hetjax.models import DecoderConfig, LanguageModel
from hetjax.optimizers.muon import muon_dimensions
from hetjax.stages.flat_state import by_path, flatten_module
from tests.harness.optimizers import PLACEMENTS, make_batch, make_trainer
from tests.harness.small_modules import WIDTH, Tower

FLOAT32 = {"param_dtype": "float32", "compute_dtype": "float32"}


class Unnamed(Tower):
    """A tower whose stacked weights have no dim names."""

    def __init__(self, rngs: nnx.Rngs):
        super().__init__(rngs)
        self.layers.kernel = nnx.Param(self.layers.kernel[...])


def _seen(trainer_of) -> dict[str, tuple[int, ...]]:
    """The shapes that an optimizer is called with."""
    seen = {}

    def update(updates, state, params=None):
        seen.update({path: param.shape for path, param in params.items()})
        return updates, state

    trainer_of(optax.GradientTransformation(lambda params: (), update))
    return seen


@pytest.mark.parametrize("place", ["one-device", "stages"])
def test_an_optimizer_sees_the_weight_of_one_layer_and_all_weights_of_the_module(place):
    seen = _seen(lambda tx: make_trainer({"tower": tx}, PLACEMENTS[place], frozen=("encoder",), **FLOAT32))
    assert seen == {"layers/kernel": (WIDTH, WIDTH), "out/kernel": (WIDTH, 4), "out/bias": (4,)}


def test_layers_without_dim_names_are_found_by_cutting_the_module():
    graph = ModuleGraph({"tower": Unnamed}, [])
    layout = Placement({"tower": Layout(devices="0")})
    assert _seen(lambda tx: Trainer(graph, layout, optimizer=tx))["layers/kernel"] == (WIDTH, WIDTH)


def test_a_state_has_the_leaves_of_its_stage_and_no_array_of_others():
    trainer = make_trainer(optax.adafactor(1e-2, min_dim_size_to_factor=4), PLACEMENTS["stages"], **FLOAT32)
    state = trainer.init()
    first, last = (by_path(state.stages[name].opt_state) for name in ("tower.0", "tower.3"))
    assert not [path for path in first if "out/" in path]
    assert [path for path in last if "out/" in path]
    rows = [leaf for path, leaf in last.items() if "v_row" in path and "layers/" in path]
    assert [leaf.shape for leaf in rows] == [(1, WIDTH)], "one layer's row sums"


def test_the_state_of_an_optimizer_that_couples_elements_goes_to_other_stages_by_a_checkpoint(tmp_path):
    optimizer = functools.partial(optax.adafactor, 1e-2, min_dim_size_to_factor=4)
    one, other = (make_trainer(optimizer(), PLACEMENTS[place], **FLOAT32) for place in ("disjoint", "stages"))
    state, _ = one.step(one.init(), make_batch())
    checkpoints = Checkpoints(tmp_path, keep=1, trainer=one)
    checkpoints.save(state, {})
    checkpoints.close()
    restored, _ = Checkpoints(tmp_path, keep=1, trainer=other).restore()
    assert np.array_equal(
        np.concatenate([by_path(restored.stages[f"tower.{i}"].opt_state)["0/v_row/layers/kernel"] for i in range(4)]),
        by_path(state.stages["tower"].opt_state)["0/v_row/layers/kernel"],
    )


def test_muon_takes_heads_together_experts_apart_and_leaves_embeddings_and_vectors_to_adam():
    config = DecoderConfig(vocab_size=64, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=32)
    graph = ModuleGraph({"llm": lambda rngs: LanguageModel(config, rngs=rngs)}, [])
    dimensions = muon_dimensions(graph, "llm")
    found = {path.rpartition("block/")[2]: numbers for path, numbers in dimensions.items()}
    assert found["attention/query/kernel"] == ((0,), (1, 2))
    assert found["attention/output/kernel"] == ((0, 1), (2,))
    assert found["mlp/down/kernel"] == ((0,), (1,))
    assert found["embedding"] is None and found["head/kernel"] is None
    assert found["mlp_norm/scale"] is None


def test_every_stacked_weight_of_the_models_names_its_layers(make_config):
    graph = build_graph(make_config().model)
    trainer_graph = {name: graph.abstract(name) for name in graph.modules}
    for name, module in trainer_graph.items():
        skeleton, params, _ = flatten_module(module)
        for path in params:
            assert not path.startswith("layers/") or skeleton.dims[path][0] == "layers", (name, path)


def test_a_scale_of_a_modules_steps_is_one_of_all_of_the_step():
    trainer = make_trainer(optax.sgd(0.1), PLACEMENTS["one-device"], learning_rate_scale={"tower": 0.5}, **FLOAT32)
    state = trainer.init()
    before, gradients = trainer.weights(state), trainer.loss_and_gradients(state, make_batch())[1]
    after = trainer.weights(trainer.step(state, make_batch())[0])
    for module, rate in (("encoder", 0.1), ("tower", 0.05)):
        for path, gradient in gradients[module].items():
            np.testing.assert_allclose(before[module][path] - after[module][path], rate * gradient, atol=1e-7)


def test_the_loss_is_carried_to_the_optimizers_that_read_it_and_no_others():
    plateau = optax.contrib.reduce_on_plateau()
    trainer = make_trainer(
        {"encoder": optax.chain(optax.sgd(0.1), plateau), "tower": optax.sgd(0.1)}, PLACEMENTS["disjoint"], **FLOAT32
    )
    assert {name: update.needs.loss for name, update in trainer.updates.items()} == {"encoder": True, "tower": False}
    state, metrics = trainer.step(trainer.init(), make_batch())
    found = jax.tree.leaves(state.stages["encoder"].opt_state, is_leaf=lambda node: hasattr(node, "best_value"))
    best = next(node.best_value for node in found if hasattr(node, "best_value"))
    assert float(best) == float(metrics["loss"])
