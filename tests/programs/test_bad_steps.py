"""Steps whose gradient is no finite number leave weights, optimizer and buffers as they were, on every placement."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import hetjax
from hetjax.meshes import Layout, Placement
from hetjax.models.dims import named

SAMPLES, WIDTH = 8, 3
X = np.random.default_rng(0).normal(size=(SAMPLES, WIDTH)).astype(np.float32)
BAD = np.full_like(X, 1e30)  # finite as the batch has it, and infinite squared
ONE = {"first": Layout(devices="0"), "end": Layout(devices="0")}
TWO = {"first": Layout(devices="0-1", data=2), "end": Layout(devices="2-3", data=2)}
OPTIMIZERS = {"adamw": optax.adamw(0.1), "sgd": optax.sgd(0.1, momentum=0.9)}


class First(nnx.Module):
    """x w, and how many rows it has seen."""

    def __init__(self, rngs: nnx.Rngs):
        self.weight = nnx.Param(named(nnx.initializers.ones_init(), None)(rngs.params(), (WIDTH,)))
        self.rows, self.sum = nnx.BatchStat(jnp.zeros(())), nnx.BatchStat(jnp.zeros(()))

    def __call__(self, x):
        self.rows[...] += x.shape[0]
        self.sum[...] += jnp.sum(x * x)
        return {"y": x * self.weight[...]}


class End(nnx.Module):
    """The sum of the squares of y v."""

    def __init__(self, rngs: nnx.Rngs):
        self.weight = nnx.Param(named(nnx.initializers.ones_init(), None)(rngs.params(), (WIDTH,)))

    def __call__(self, y):
        return {"loss": jnp.sum((y * self.weight[...]) ** 2)}


def train(layouts, batches, optimizer="adamw", **options):
    """The state after some batches, and the metrics of each."""
    graph = hetjax.ModuleGraph({"first": First, "end": End}, [hetjax.Edge("first.y", "end.y")])
    options = {"skip_bad_steps": True, **options}
    trainer = hetjax.Trainer(graph, Placement(layouts), optimizer=OPTIMIZERS[optimizer], **options)
    state, metrics = trainer.init(), []
    for batch in batches:
        state, found = trainer.step(state, {"first": {"x": batch}, "loss_tokens": SAMPLES})
        metrics.append({name: float(value) for name, value in found.items()})
    return trainer, state, metrics


def arrays(state):
    return jax.tree.map(np.asarray, [(s.params, s.buffers, s.opt_state) for s in state.stages.values()])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("layouts", "microbatches"), [(ONE, 1), (TWO, 1), (TWO, 2)], ids=("one", "two", "halves"))
def test_a_bad_step_changes_nothing(layouts, microbatches, optimizer):
    _, expected, _ = train(layouts, [X, X + 1], optimizer, microbatches=microbatches)
    trainer, found, metrics = train(layouts, [X, BAD, X + 1], optimizer, microbatches=microbatches)
    for one, other in zip(jax.tree.leaves(arrays(expected)), jax.tree.leaves(arrays(found)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.isfinite(metrics[1]["grad_norm"]) and np.isfinite(metrics[2]["grad_norm"])
    assert found.step == 3
    assert trainer.without_measure(found) == []


def test_without_the_setting_a_bad_step_is_taken():
    _, state, _ = train(ONE, [BAD], skip_bad_steps=False)
    assert not np.isfinite(arrays(state)[1][0]["weight"]).all()


def test_weights_that_a_finite_gradient_made_too_large_are_named():
    graph = hetjax.ModuleGraph({"first": First, "end": End}, [hetjax.Edge("first.y", "end.y")])
    optimizers = {"first": optax.sgd(1e30), "end": optax.sgd(0.1)}
    trainer = hetjax.Trainer(graph, Placement(TWO), optimizer=optimizers, skip_bad_steps=True)
    state, metrics = trainer.step(trainer.init(), {"first": {"x": X}, "loss_tokens": SAMPLES})
    assert np.isfinite(metrics["grad_norm"])
    assert trainer.without_measure(state) == ["first"]
