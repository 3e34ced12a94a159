"""What a module does once a step, after its last microbatch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import hetjax
from hetjax.errors import GraphError
from hetjax.meshes import Layout, Placement
from hetjax.models.dims import named

SAMPLES, WIDTH = 8, 3
X = np.random.default_rng(0).normal(size=(SAMPLES, WIDTH)).astype(np.float32)


class Centred(nnx.Module):
    """x w summed, less a running mean of x that moves by half of the way to the mean of each batch."""

    def __init__(self, rngs: nnx.Rngs):
        self.weight = nnx.Param(named(nnx.initializers.ones_init(), None)(rngs.params(), (WIDTH,)))
        self.mean, self.total, self.rows = (nnx.BatchStat(jnp.zeros(s)) for s in ((WIDTH,), (WIDTH,), ()))

    def __call__(self, x):
        self.total[...] += x.sum(axis=0)
        self.rows[...] += x.shape[0]
        return {"loss": jnp.sum((x - self.mean[...]) * self.weight[...])}

    def end_of_step(self):
        self.mean[...] += 0.5 * (self.total[...] / self.rows[...] - self.mean[...])
        self.total[...], self.rows[...] = jnp.zeros(WIDTH), jnp.zeros(())


class Greedy(Centred):
    def end_of_step(self):
        self.weight[...] = jnp.zeros(WIDTH)


class Shrinking(Centred):
    def end_of_step(self):
        self.mean.set_value(self.mean[...][:1])


def trainer(module=Centred, microbatches=1) -> hetjax.Trainer:
    graph = hetjax.ModuleGraph({"end": lambda rngs: module(rngs)})
    layout = Layout(devices="0-1", data=2)
    return hetjax.Trainer(graph, Placement({"end": layout}), optimizer=optax.sgd(0.1), microbatches=microbatches)


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_state_moves_once_a_step_by_the_whole_batch(microbatches):
    own = trainer(microbatches=microbatches)
    state, mean = own.init(), np.zeros(WIDTH)
    for step in range(3):
        batch = {"end": {"x": X + step}, "loss_tokens": SAMPLES}
        state, metrics = own.step(state, batch)
        if step == 0:
            np.testing.assert_allclose(metrics["loss"], X.sum() / SAMPLES, rtol=1e-5)
        mean += 0.5 * ((X + step).mean(axis=0) - mean)
        np.testing.assert_allclose(state.stages["end"].buffers["mean"], mean, rtol=1e-5)
        assert state.stages["end"].buffers["rows"] == 0


def test_gradients_alone_end_no_step():
    own = trainer()
    state = own.init()
    own.loss_and_gradients(state, {"end": {"x": X}, "loss_tokens": SAMPLES})
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.stages["end"].buffers))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Greedy, r"module 'end': its end_of_step set weights \(weight\), which the optimizer alone changes"),
        (Shrinking, "module 'end': its end_of_step changed the paths, shapes or dtypes of its state"),
    ],
)
def test_an_end_of_step_that_changes_what_it_must_not_is_refused_before_the_first_step(module, message):
    own = trainer(module)
    with pytest.raises(GraphError, match=message):
        own.compile({"end": {"x": X}, "loss_tokens": SAMPLES})
