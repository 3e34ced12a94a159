"""What a trainer refuses, and with which words."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from hetjax import Boundary, Edge, ModuleGraph, Trainer
from hetjax.errors import BatchError, BoundaryError, ConfigError, GraphError, ScheduleError, StateError
from hetjax.meshes import Layout, Placement
from tests.harness.plain_trainer import branching_modules, make_batch, plain_modules, plain_trainer
from tests.harness.small_modules import CLASSES, IN, Encoder


@pytest.mark.parametrize("gradient", [True, False])
def test_an_output_that_an_edge_names_but_the_module_lacks_is_refused_with_the_list(gradient):
    graph = ModuleGraph(
        plain_modules(),
        [Edge("encoder.features", "head.features"), Edge("encoder.tokens", "head.skip", gradient=gradient)],
    )
    placement = Placement({name: Layout(devices="0") for name in graph.modules})
    trainer = Trainer(graph, placement, optimizer=optax.sgd(1))
    with pytest.raises(GraphError, match="'encoder' has no output 'tokens'; its outputs are features"):
        trainer.compile(make_batch("encoder"))


@pytest.mark.parametrize(
    ("loss", "message"),
    [(lambda x: jnp.sum(x, axis=-1), r"'loss'.*float32\[4\]"), (lambda x: jnp.sum(x > 0), "'loss' is int32")],
    ids=["vector", "integer"],
)
def test_a_loss_that_is_no_floating_scalar_is_refused_with_what_it_is(loss, message):
    class Odd(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(IN, CLASSES, rngs=rngs)

        def __call__(self, x):
            return {"loss": loss(self.linear(x))}

    trainer = Trainer(ModuleGraph({"head": Odd}), Placement({"head": Layout(devices="0")}), optimizer=optax.sgd(1))
    batch = {"head": {"x": np.ones((4, IN), np.float32)}, "loss_tokens": 4}
    with pytest.raises(GraphError, match=f"module 'head'.*{message}"):
        trainer.compile(batch)


def test_a_sink_without_a_loss_is_refused_with_its_outputs():
    graph = ModuleGraph({"encoder": Encoder})
    trainer = Trainer(graph, Placement({"encoder": Layout(devices="0")}), optimizer=optax.sgd(1))
    with pytest.raises(GraphError, match="module 'encoder' has no output 'loss'; its outputs are features"):
        trainer.compile({"encoder": {"x": np.ones((4, IN), np.float32)}, "loss_tokens": 4})


def test_an_edge_of_integers_that_asks_for_a_gradient_is_refused():
    modules = {name: branching_modules()[name] for name in ("left", "vote", "head")}
    graph = ModuleGraph(
        modules,
        [
            Edge("left.features", "vote.features"),
            Edge("left.features", "head.features"),
            Edge("vote.winner", "head.shift"),
        ],
    )
    trainer = Trainer(graph, Placement({name: Layout(devices="0") for name in modules}), optimizer=optax.sgd(1))
    with pytest.raises(GraphError, match="which has no gradient"):
        trainer.compile(make_batch("left"))


def test_an_unknown_schedule_is_refused_with_the_known_ones():
    with pytest.raises(ScheduleError, match="unknown schedule 'zigzag'; the known ones are gpipe, 1f1b, "):
        plain_trainer(schedule="zigzag")


def test_names_that_no_module_has_are_refused():
    with pytest.raises(ConfigError, match="learning_rate_scale names module 'eye', which the graph lacks; its modules"):
        plain_trainer(learning_rate_scale={"eye": 0.1})
    with pytest.raises(ConfigError, match="optimizer names module 'eye', which the graph lacks"):
        plain_trainer(optimizer={"eye": optax.sgd(1)})
    with pytest.raises(ConfigError, match="optimizer has no entry for module 'head', which trains"):
        plain_trainer(optimizer={"encoder": optax.sgd(1)})


def test_a_batch_that_does_not_divide_is_refused_before_anything_compiles():
    trainer = plain_trainer(microbatches=5)
    with pytest.raises(BatchError, match="a batch of 12 samples is not divisible into 5 microbatches"):
        trainer.step(trainer.init(), make_batch("encoder"))
    with pytest.raises(ConfigError, match="the trainer has not compiled yet"):
        _ = trainer.compiled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen": "encoder"}, r"frozen='encoder' is one string; .*\['encoder'\]"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0; give a number above 0"),
        ({"param_dtype": "bf16"}, "param_dtype='bf16' is no floating dtype"),
        ({"compute_dtype": "int8"}, "compute_dtype='int8' is no floating dtype"),
        ({"microbatches": 2.0}, "microbatches=2.0; give a whole number"),
        ({"frozen": ["encoder"], "learning_rate_scale": {"encoder": 0.1}}, "names module 'encoder', which is frozen"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        plain_trainer(**options)


def test_a_state_that_a_step_consumed_or_of_another_trainer_is_refused():
    trainer, batch = plain_trainer(), make_batch("encoder")
    state = trainer.init()
    after, _ = trainer.step(state, batch)
    with pytest.raises(StateError, match="state after 0 steps was consumed by a step"):
        trainer.step(state, batch)
    with pytest.raises(StateError, match="consumed"):
        trainer.weights(state)
    other = Trainer(ModuleGraph({"alone": Encoder}), Placement({"alone": Layout(devices="0")}), optimizer=optax.sgd(1))
    with pytest.raises(StateError, match="is of stages alone, but this trainer has encoder, head"):
        trainer.step(other.init(), batch)
    trainer.step(after, batch)


def test_a_batch_of_another_kind_of_number_is_refused():
    trainer, batch = plain_trainer(), make_batch("encoder")
    trainer.compile(batch)
    batch["encoder"] = {port: array.astype(np.complex64) for port, array in batch["encoder"].items()}
    with pytest.raises(BatchError, match="is complex64 in this batch, but programs were compiled for float32"):
        trainer.step(trainer.init(), batch)


@pytest.mark.parametrize("count", [float("nan"), -1.0])
def test_a_count_of_loss_tokens_that_cannot_divide_is_refused(count):
    with pytest.raises(BatchError, match="loss weights and tokens are 0 or more"):
        plain_trainer().step(plain_trainer().init(), {**make_batch("encoder"), "loss_tokens": count})


def test_a_boundary_between_anything_but_named_shardings_is_refused():
    with pytest.raises(BoundaryError, match=r"source is a SingleDeviceSharding; give a jax\.sharding\.NamedSharding"):
        Boundary(jax.sharding.SingleDeviceSharding(jax.devices()[0]), None)
