"""A trainer that is compiled for batches of several shapes."""

import jax
import numpy as np
import pytest

from hetjax import Trainer
from hetjax.errors import BatchError
from hetjax.meshes import Layout, Placement
from tests.harness.count_compiles import count_compiles
from tests.harness.parity.oracle import relative_error
from tests.harness.parity.problem import ROWS, make_batch, make_graph, make_optimizer
from tests.harness.plain_trainer import make_batch as plain_batch
from tests.harness.plain_trainer import plain_trainer

SHORT = 10
LAYOUTS = {"vision": Layout(devices="0-1", data=2), "llm": Layout(devices="2-5", data=2, tensor=2)}


def make_trainer(**options):
    return Trainer(make_graph(), Placement(LAYOUTS), optimizer=make_optimizer(), microbatches=2, **options)


def shortened(batch, length=SHORT):
    """The first positions of each sample."""
    llm = {name: array[:, :length] for name, array in batch["llm"].items() if name != "image_positions"}
    positions = np.where(batch["llm"]["image_positions"] < length, batch["llm"]["image_positions"], length)
    return {**batch, "llm": {**llm, "image_positions": positions}}


def masked(batch):
    """The same samples with the positions behind those padded: a causal model learns the same of them."""
    weights = batch["llm"]["loss_weights"] * (np.arange(ROWS) < SHORT)
    return {**batch, "llm": {**batch["llm"], "loss_weights": weights}}


def shapes_of(batch):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)


def train(trainer, batches):
    state, losses = trainer.init(0), []
    for batch in batches:
        state, metrics = trainer.step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, trainer.weights(state)


def test_steps_of_several_shapes_equal_those_of_padded_batches(float64):
    full, other = make_batch(0), make_batch(1)
    trainer = make_trainer(param_dtype="float64")
    trainer.compile(shapes_of(full), shapes_of(shortened(full)))
    wanted, weights = train(trainer, [full, masked(other), masked(full), other])
    with count_compiles() as compiled:
        losses, found = train(trainer, [full, shortened(other), shortened(full), other])
    assert not compiled, "a step of a shape that was given compiles nothing"
    np.testing.assert_allclose(losses, wanted, rtol=1e-10)
    for module, arrays in weights.items():
        for path, array in arrays.items():
            assert relative_error(found[module][path], array) < 1e-10, (module, path)
    state = trainer.init(0)
    loss, gradients = trainer.loss_and_gradients(state, shortened(other))
    wanted_loss, wanted_gradients = trainer.loss_and_gradients(state, masked(other))
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-10)
    for path, gradient in wanted_gradients["vision"].items():
        assert relative_error(gradients["vision"][path], gradient) < 1e-10, path


def test_programs_that_are_equal_for_several_shapes_are_made_once():
    trainer = make_trainer()
    first = trainer.trace(make_batch())
    second = trainer.trace(shortened(make_batch()), beside=first)
    assert second.step.programs["vision"] is first.step.programs["vision"]
    assert second.step.programs["llm"] is not first.step.programs["llm"]
    assert second.step.boundaries == first.step.boundaries and second.step.norms == first.step.norms
    assert second.step.results["llm"].programs["results"] is first.step.results["llm"].programs["results"]
    assert second.step.results["llm"].programs["scale"] is not first.step.results["llm"].programs["scale"]
    again = {name for name, run in second.tasks.items() if run not in set(first.tasks.values())}
    assert again == {"llm forward and backward", "llm scale"}
    assert second.schedule is first.schedule


def test_a_schedule_by_costs_is_that_of_the_first_shapes():
    trainer = make_trainer(schedule="bubble_fill")
    first = trainer.trace(make_batch())
    second = trainer.trace(shortened(make_batch()), beside=first)
    assert second.schedule is first.schedule and first.schedule is not trainer.schedule


def test_a_batch_of_other_shapes_is_refused_with_the_nearest_ones():
    trainer, batch = plain_trainer(), plain_batch("encoder")

    def times(count):
        return jax.tree.map(lambda x: x if np.ndim(x) == 0 else np.concatenate([x] * count), batch)

    trainer.compile(times(2), batch)
    state = trainer.init(0)
    with pytest.raises(BatchError, match=r"of 2 sets of shapes .* the batch encoder.x \[36, 6\].* one of the shapes"):
        trainer.step(state, times(3))
    other = {**batch, "encoder": {"x": batch["encoder"]["x"].astype(np.complex64)}}
    with pytest.raises(BatchError, match="keep dtypes fixed"):
        trainer.step(state, other)
    with pytest.raises(BatchError, match="2 batches are given to compile for, of 1 shapes"):
        trainer.compile(batch, plain_batch("encoder", seed=1))
