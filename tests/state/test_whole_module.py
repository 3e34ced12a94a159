"""Whole modules out of a training state and into one, on stages and shards as on one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import hetjax
from hetjax.errors import StateError
from hetjax.meshes import Layout, Placement
from hetjax.models import DecoderConfig, LanguageModel
from hetjax.models.arrays import arrays_by_path

CONFIG = DecoderConfig(vocab_size=40, width=16, layers=4, heads=2, kv_heads=2, head_dim=4, mlp_width=24)


class Normed(nnx.Module):
    """A sum of squares by a learned factor, with a count that does not train."""

    input_ports = ("tokens", "loss_weights")

    def __init__(self, rngs: nnx.Rngs):
        self.factor = nnx.Param(jax.random.normal(rngs.params(), (6,)))
        self.calls = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, tokens, loss_weights):
        self.calls[...] = self.calls[...] + 1
        return {"loss": (self.factor[...] ** 2 * loss_weights[..., None]).sum()}


def make_trainer(layout: Layout) -> hetjax.Trainer:
    graph = hetjax.ModuleGraph(modules={"llm": lambda rngs: LanguageModel(CONFIG, rngs=rngs)}, edges=[])
    return hetjax.Trainer(graph, Placement({"llm": layout}), optimizer=optax.adamw(1e-2))


def batch() -> dict[str, dict[str, np.ndarray]]:
    tokens = np.random.default_rng(0).integers(0, 40, (4, 10)).astype(np.int32)
    return {"llm": {"tokens": tokens, "labels": np.roll(tokens, -1, 1), "loss_weights": np.ones((4, 10), np.float32)}}


LAYOUTS = {
    "shards": Layout(devices="0-3", fsdp=2, tensor=2),
    "uneven stages": Layout(devices="0-2", stage=3, layers=(1, 2, 1)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_module_comes_out_whole_and_goes_in_again(name):
    trainer = make_trainer(LAYOUTS[name])
    state = trainer.init(3)
    module = hetjax.module_of(state, "llm")
    assert type(module) is LanguageModel and module.config == CONFIG
    weights = trainer.weights(state)["llm"]
    found = arrays_by_path(module)
    assert found.keys() == weights.keys()
    for path, array in weights.items():
        np.testing.assert_array_equal(found[path], array)
    # And a changed one takes its place.
    changed = jax.tree.map(lambda array: array * 0.5, nnx.state(module))
    nnx.update(module, changed)
    other = hetjax.with_module(state, "llm", module)
    for path, array in trainer.weights(other)["llm"].items():
        np.testing.assert_array_equal(array, weights[path] * np.float32(0.5))
    stage = trainer.stages[-1]
    before, after = state.stages[stage.name], other.stages[stage.name]
    assert after.opt_state is before.opt_state and after.params.keys() == before.params.keys()
    assert all(after.params[path].sharding == before.params[path].sharding for path in before.params)


@pytest.mark.slow
def test_a_step_goes_on_from_a_module_that_was_put_in_and_does_not_change_it():
    trainer = make_trainer(LAYOUTS["shards"])
    state = trainer.init(3)
    module = hetjax.module_of(state, "llm")
    # It computes on its own, as on one device.
    loss = module(**batch()["llm"])["loss"]
    np.testing.assert_allclose(loss / 40, trainer.loss_and_gradients(state, batch())[0], rtol=1e-5)
    kept = {path: np.array(array) for path, array in arrays_by_path(module).items()}
    after, _ = trainer.step(hetjax.with_module(trainer.init(8), "llm", module), batch())
    want, _ = trainer.step(state, batch())
    for path, array in trainer.weights(want)["llm"].items():
        np.testing.assert_array_equal(trainer.weights(after)["llm"][path], array)
        assert not np.array_equal(array, kept[path])
        np.testing.assert_array_equal(arrays_by_path(module)[path], kept[path])
    assert arrays_by_path(hetjax.module_of(after, "llm")).keys() == kept.keys()


def test_what_does_not_train_comes_out_too_and_goes_in():
    graph = hetjax.ModuleGraph(modules={"head": lambda rngs: Normed(rngs)}, edges=[])
    trainer = hetjax.Trainer(graph, Placement({"head": Layout(devices="0")}), optimizer=optax.sgd(0.1))
    data = {"head": {"tokens": np.zeros((2, 3), np.int32), "loss_weights": np.ones((2, 3), np.float32)}}
    state, _ = trainer.step(trainer.init(0), data)
    module = hetjax.module_of(state, "head")
    assert int(module.calls[...]) == 1
    module.calls[...] = jnp.asarray(7, jnp.int32)
    state, _ = trainer.step(hetjax.with_module(state, "head", module), data)
    assert int(hetjax.module_of(state, "head").calls[...]) == 8


def test_what_does_not_fit_is_refused():
    trainer = make_trainer(Layout(devices="0"))
    state = trainer.init(0)
    with pytest.raises(StateError, match="no module 'vision'; its modules are llm"):
        hetjax.module_of(state, "vision")
    with pytest.raises(StateError, match="does not know its modules"):
        hetjax.module_of(hetjax.TrainState(step=0, stages=state.stages), "llm")
    wider = dataclasses.replace(CONFIG, mlp_width=32)
    other = nnx.eval_shape(lambda: LanguageModel(wider, rngs=nnx.Rngs(0)))
    with pytest.raises(StateError, match=r"other weights than the state: .*mlp/\w+/kernel is \(.*32.*\) in the module"):
        hetjax.with_module(state, "llm", other)
