"""The audio encoder in layouts of every axis, against one device without any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.generation.stage_programs import Encode
from hetjax.meshes import Layout, Placement
from hetjax.models.parts.linear import Linear
from hetjax.stages.flat_state import flatten_module
from tests.harness.choices import others_slow
from tests.harness.models.tiny_models import call
from tests.harness.models.tiny_parakeet import TINY, build_parakeet
from tests.harness.parity.oracle import relative_error, steps_on_one_device

SAMPLES, CLIPS, LENGTH, ROWS = 8, 2, 4800, 4
CASES = {
    "data2-fsdp2-tensor2": (Layout(data=2, fsdp=2, tensor=2), "eval", 2),
    "context2-stage2": (Layout(devices="0-3", context=2, stage=2), "eval", 2),
    "data4": (Layout(devices="0-3", data=4), "train", 1),
    "stage2-data2-tensor2": (Layout(data=2, tensor=2, stage=2), "train", 1),
}


class Head(nnx.Module):
    """A loss of every token."""

    def __init__(self, rngs):
        self.score = Linear({"embed": TINY.output_width}, {"scores": 3}, rngs=rngs)

    def __call__(self, tokens, loss_weights):
        return {"loss": jnp.sum(jnp.sin(self.score(tokens)) * loss_weights[..., None])}


@functools.cache
def make_graph(mode):
    modules = {"audio": build_parakeet(batch_norm=mode), "end": Head(nnx.Rngs(1))}
    return ModuleGraph(modules, [Edge("audio.tokens", "end.tokens")])


@functools.cache
def make_batch():
    """Clips of many lengths; loss at every row, those of padding included: they are numbers like any other."""
    random = np.random.default_rng(2)
    lengths = random.integers(160, LENGTH + 1, (SAMPLES, CLIPS)).astype(np.int32)
    lengths[::3, 1] = 0
    waveforms = random.normal(scale=0.1, size=(SAMPLES, CLIPS, LENGTH))
    weights = random.random((SAMPLES, CLIPS * ROWS))
    return {"audio": {"waveforms": waveforms, "lengths": lengths}, "end": {"loss_weights": weights}}


@functools.cache
def expected(mode):
    return steps_on_one_device(make_graph(mode), make_batch(), optax.sgd(0.1), steps=2, dtype="float64")


@pytest.mark.parametrize("name", others_slow(CASES, ["data2-fsdp2-tensor2"]))
def test_losses_gradients_weights_and_statistics_equal_one_device(float64, name):
    layout, mode, microbatches = CASES[name]
    trainer = Trainer(
        make_graph(mode),
        Placement({"audio": layout, "end": Layout(devices="0-1", data=2)}),
        optimizer=optax.sgd(0.1),
        microbatches=microbatches,
        param_dtype="float64",
        compute_dtype="float64",
    )
    batch, state = make_batch(), trainer.init()
    before = flatten_module(make_graph(mode).build("audio", 0))[2]
    for loss, gradients, weights, buffers in expected(mode):
        _, found_gradients = trainer.loss_and_gradients(state, batch)
        state, metrics = trainer.step(state, batch)
        assert relative_error(metrics["loss"], loss) < 1e-10
        found_weights = trainer.weights(state)
        for found, wanted in ((found_gradients, gradients), (found_weights, weights)):
            for path, array in wanted["audio"].items():
                assert relative_error(found["audio"][path], array) < 1e-10, path
        for path, array in buffers["audio"].items():
            parts = [state.stages[stage.name].buffers[path] for stage in trainer.stages if stage.module == "audio"]
            # Running statistics are float32 whatever the weights are.
            np.testing.assert_allclose(np.concatenate(parts), array, rtol=1e-6, err_msg=path)
            assert np.array_equal(array, before[path]) == (mode == "eval"), path


def test_generation_takes_running_statistics():
    """A stage that trains by those of the batch encodes each prompt by itself."""
    layout = Layout(devices="0-1", data=2)
    placement = Placement({"audio": layout, "end": layout})
    trainer = Trainer(make_graph("train"), placement, optimizer=optax.sgd(0.1))
    stage = trainer.stages[0]
    inputs = {port: jnp.asarray(array) for port, array in make_batch()["audio"].items()}
    shapes = {
        port: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=stage.port_sharding(port, a.shape))
        for port, a in inputs.items()
    }
    state = trainer.init().stages["audio"]
    placed = {port: jax.device_put(array, shapes[port].sharding) for port, array in inputs.items()}
    weights, _ = trainer.updates["audio"].prepare(state.params)
    tokens = Encode(stage, shapes).forward(weights, state.buffers, placed)["tokens"]
    assert relative_error(tokens, call(build_parakeet(batch_norm="eval"), **inputs)["tokens"]) < 1e-5
