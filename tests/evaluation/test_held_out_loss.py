"""The loss of held-out samples equals that of training on the same rows, on any layout, and changes no state."""

import jax
import numpy as np
import optax
import pytest

import hetjax
from hetjax.config.build import batched, build_graph
from hetjax.config.build_loader import make_loader
from hetjax.config.run_config import load_config
from hetjax.data import LossBatch, loss_batches
from hetjax.errors import DataError
from hetjax.evaluation.held_out_loss import HeldOutLoss
from hetjax.meshes import Layout, Placement
from tests.harness.digits_run import CONFIG, write_dataset


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The config of a small model, and the loader of six samples of pictures."""
    path = str(write_dataset(tmp_path_factory.mktemp("data"), samples=6))
    sizes = ["--model.llm.layers", "1", "--model.vision.layers", "1", "--data.batch_size", "4"]
    config, _ = load_config(["--config", CONFIG, "--data.train", path, "--data.eval", path, *sizes])
    return config, make_loader(config.data, config.model)


def losses_of(run, placement, rows, **options):
    config, loader = run
    trainer = hetjax.Trainer(build_graph(config.model), Placement(placement), optimizer=optax.sgd(0.1), **options)
    shapes = loader.shapes(training=True)
    loss = HeldOutLoss(trainer, lambda count: batched(shapes, count), rows)
    for compile_task in loss.tasks().values():
        compile_task()
    state = trainer.init(seed=3)
    before = jax.tree.map(np.asarray, state.stages)
    found = loss(state, loss_batches(loader, loader.held_out, loss.rows))
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state.stages))
    return loss.rows, found, trainer, state


def test_it_equals_the_loss_of_training_on_the_same_rows_on_every_layout(run):
    rows, alone, trainer, state = losses_of(run, {"vision": Layout(devices="0"), "llm": Layout(devices="0")}, 4)
    _, loader = run
    samples = [[loader.load(loader.held_out, i)] for i in range(6)]
    batch = loader.collate(samples, loader.processor.capacity)
    want, _ = trainer.loss_and_gradients(state, batch)
    assert rows == 4 and alone.tokens == batch["llm"]["loss_weights"].sum()
    assert alone.loss == pytest.approx(float(want), rel=1e-6)
    apart = {"vision": Layout(devices="0-3", data=4), "llm": Layout(devices="4-5", tensor=2)}
    rows, other, _, _ = losses_of(run, apart, 1, microbatches=2)
    assert rows == 4, "as many as the encoder has shards"
    assert other.loss == pytest.approx(alone.loss, rel=1e-5) and other.tokens == alone.tokens


def test_samples_that_cannot_be_used_are_left_out_and_named(run):
    config, loader = run
    trainer = hetjax.Trainer(
        build_graph(config.model),
        Placement({"vision": Layout(devices="0"), "llm": Layout(devices="0")}),
        optimizer=optax.sgd(0.1),
    )
    shapes = loader.shapes(training=True)
    loss = HeldOutLoss(trainer, lambda count: batched(shapes, count), 1)
    with pytest.raises(DataError, match=r"no token .* counts for a loss.*left out: x\.jsonl:1: too long"):
        loss(trainer.init(seed=0), [LossBatch(None, ("x.jsonl:1: too long",))])
