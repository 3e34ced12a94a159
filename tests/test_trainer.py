"""A user's own Flax NNX modules, end to end, against the same modules called by hand in plain JAX on one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.meshes import Layout, Placement
from tests.harness.parity.oracle import relative_error
from tests.harness.plain_trainer import (
    SAMPLES,
    branching_modules,
    make_batch,
    make_optimizer,
    plain_modules,
    plain_trainer,
)
from tests.harness.small_modules import Encoder, Head, Noisy, Tower

TOLERANCE = 1e-5


def by_module(state) -> dict[str, dict[str, np.ndarray]]:
    """A flat NNX state of a dict of modules, by module and path."""
    found = {}
    for (module, *path), leaf in nnx.to_flat_state(state):
        value = leaf[...]
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        found.setdefault(module, {})["/".join(map(str, path))] = np.asarray(value)
    return found


def train_by_hand(modules, run, batch, optimizer, *, microbatches: int, steps: int, frozen=()):
    """[(loss, gradients, weights, other state)] a step, by a loop over microbatches that hands on the state.

    `run(modules, inputs)` calls the modules and returns the summed loss.
    """
    definition, params, rest = nnx.split(nnx.Dict(modules), nnx.Param, ...)
    trained = nnx.State({name: tree for name, tree in params.items() if name not in frozen})
    fixed = nnx.State({name: tree for name, tree in params.items() if name in frozen})

    def loss_of(trained, rest, inputs):
        whole = nnx.State({**trained, **fixed})
        called = nnx.merge(definition, whole, rest, copy=True)
        loss = run(called, inputs)
        return loss / batch["loss_tokens"], nnx.split(called, nnx.Param, ...)[2]

    gradient_of = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    inputs = {name: values for name, values in batch.items() if name != "loss_tokens"}
    size = SAMPLES // microbatches
    opt_state, history = optimizer.init(trained), []
    for _ in range(steps):
        loss, gradients = 0.0, jax.tree.map(jnp.zeros_like, trained)
        for index in range(microbatches):
            rows = jax.tree.map(lambda x, i=index: x[i * size : (i + 1) * size], inputs)
            (part, rest), more = gradient_of(trained, rest, rows)
            loss, gradients = loss + part, jax.tree.map(jnp.add, gradients, more)
        updates, opt_state = optimizer.update(gradients, opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        history.append((float(loss), by_module(gradients), by_module(trained), by_module(rest)))
    return history


def assert_equals_by_hand(trainer: Trainer, batch, history) -> None:
    """Loss, every gradient, every trained weight and all other state, after each step."""
    state = trainer.init()
    for loss, gradients, weights, rest in history:
        _, found = trainer.loss_and_gradients(state, batch)
        state, metrics = trainer.step(state, batch)
        assert relative_error(metrics["loss"], loss) <= TOLERANCE
        trained = trainer.weights(state)
        for module, expected in gradients.items():
            assert set(found[module]) == set(expected)
            for path in expected:
                assert relative_error(found[module][path], expected[path]) <= TOLERANCE, (module, path)
                assert relative_error(trained[module][path], weights[module][path]) <= TOLERANCE, (module, path)
        for module, expected in rest.items():
            buffers = state.stages[module].buffers
            assert set(buffers) == set(expected)
            for path, value in expected.items():
                assert relative_error(np.asarray(buffers[path]), value) <= TOLERANCE, (module, path)


# ── an encoder and a head without any dim names ──────────────────────────────────────────────────


@functools.cache
def compiled_plain_trainer() -> Trainer:
    return plain_trainer()


def run_plain(modules, inputs):
    features = modules["encoder"](inputs["encoder"]["x"])["features"]
    return modules["head"](features, inputs["head"]["labels"])["loss"]


def test_modules_without_dim_names_train_as_by_hand():
    batch = make_batch("encoder")
    history = train_by_hand(plain_modules(), run_plain, batch, make_optimizer(), microbatches=1, steps=2)
    assert history[1][0] < history[0][0]
    assert_equals_by_hand(compiled_plain_trainer(), batch, history)


def test_loss_and_gradients_leave_the_state_as_it_is():
    trainer, batch = compiled_plain_trainer(), make_batch("encoder")
    state = trainer.init()
    before = trainer.weights(state)
    first, _ = trainer.loss_and_gradients(state, batch)
    second, _ = trainer.loss_and_gradients(state, batch)
    assert float(first) == float(second)
    jax.tree.map(np.testing.assert_array_equal, trainer.weights(state), before)


# ── running statistics and dropout ───────────────────────────────────────────────────────────────


def test_statistics_and_dropout_keys_pass_through_the_microbatches_in_order():
    modules = {"encoder": Noisy(nnx.Rngs(1)), "head": Head(nnx.Rngs(2))}

    def run(modules, inputs):
        features = modules["encoder"](inputs["encoder"]["x"])["features"]
        return modules["head"](features, inputs["head"]["labels"])["loss"]

    batch = make_batch("encoder")
    history = train_by_hand(modules, run, batch, make_optimizer(), microbatches=3, steps=2)
    graph = ModuleGraph(modules, [Edge("encoder.features", "head.features")])
    layouts = {"encoder": Layout(devices="0-1", data=2), "head": Layout(devices="2-5", data=4)}
    trainer = Trainer(graph, Placement(layouts), optimizer=make_optimizer(), microbatches=3)
    assert_equals_by_hand(trainer, batch, history)


# ── fan-in, a skip connection, a frozen module in between, integers ──────────────────────────────


def run_branching(modules, inputs):
    left = modules["left"](inputs["left"]["x"])["features"]
    right = modules["right"](inputs["right"]["x"])["features"]
    mixed = modules["middle"](left, right)
    shift = modules["vote"](left)["winner"]
    return modules["head"](mixed, inputs["head"]["labels"], left, shift)["loss"]


@functools.cache
def branching_trainer() -> Trainer:
    graph = ModuleGraph(
        branching_modules(),
        [
            Edge("left.features", "middle.features"),
            Edge("left.features", "head.skip"),
            Edge("left.features", "vote.features"),
            Edge("right.features", "middle.extra"),
            Edge("middle.output", "head.features"),
            Edge("vote.winner", "head.shift", gradient=False),
        ],
    )
    layouts = {
        "left": Layout(devices="0-2", data=3),
        "right": Layout(devices="3", data=1),
        "middle": Layout(devices="2-3", data=2),
        "vote": Layout(devices="0-1", data=2),
        "head": Layout(devices="4-6", data=3),
    }
    return Trainer(graph, Placement(layouts), optimizer=make_optimizer(), microbatches=2, frozen=("middle",))


def test_a_branching_graph_trains_as_by_hand():
    """One output feeds three modules, so that two gradients add up; the frozen module passes its gradient on."""
    batch = make_batch("left", "right")
    history = train_by_hand(
        branching_modules(), run_branching, batch, make_optimizer(), microbatches=1, steps=2, frozen=("middle",)
    )
    assert set(history[0][1]) == {"left", "right", "head"}
    assert_equals_by_hand(branching_trainer(), batch, history)


def test_a_frozen_module_and_one_without_weights_cost_no_update():
    trainer = branching_trainer()
    assert set(trainer.updates) == {"left", "right", "head"}
    assert {link.name: link.gradient for link in trainer.links if not link.gradient} == {
        "left.features->vote.features": False,
        "vote.winner->head.shift": False,
    }
    assert not trainer.schedule.graph.stage("vote").backward
    assert trainer.schedule.graph.stage("middle").backward


def test_a_frozen_module_keeps_its_weights_through_a_step():
    trainer, batch = branching_trainer(), make_batch("left", "right")
    state = trainer.init()
    before = trainer.weights(state)
    after = trainer.weights(trainer.step(state, batch)[0])
    jax.tree.map(np.testing.assert_array_equal, after["middle"], before["middle"])
    assert not np.array_equal(after["left"]["up/kernel"], before["left"]["up/kernel"])


def test_a_loss_module_without_weights_can_end_the_graph():
    class Distance(nnx.Module):
        def __call__(self, features, labels):
            return {"loss": jnp.sum((jnp.mean(features, axis=-1) - labels) ** 2)}

    modules = {"encoder": Encoder(nnx.Rngs(1)), "head": Distance()}
    batch = make_batch("encoder")
    history = train_by_hand(modules, run_plain, batch, make_optimizer(), microbatches=1, steps=1)
    graph = ModuleGraph(modules, [Edge("encoder.features", "head.features")])
    layouts = {"encoder": Layout(devices="0-1", data=2), "head": Layout(devices="2", data=1)}
    trainer = Trainer(graph, Placement(layouts), optimizer=make_optimizer(), microbatches=1)
    assert_equals_by_hand(trainer, batch, history)


# ── a user's own stages ──────────────────────────────────────────────────────────────────────────


def test_a_module_with_stages_of_its_own_trains_as_by_hand():
    modules = {"encoder": Encoder(nnx.Rngs(1)), "head": Tower(nnx.Rngs(2), layers=2)}

    def run(modules, inputs):
        features = modules["encoder"](inputs["encoder"]["x"])["features"]
        return modules["head"](features, labels=inputs["head"]["labels"])["loss"]

    batch = make_batch("encoder")
    history = train_by_hand(modules, run, batch, make_optimizer(), microbatches=1, steps=1)
    graph = ModuleGraph(modules, [Edge("encoder.features", "head.features")])
    layouts = {"encoder": Layout(devices="0-1", data=2), "head": Layout(devices="2-5", stage=2, tensor=2)}
    trainer = Trainer(graph, Placement(layouts), optimizer=make_optimizer(), microbatches=2)
    state = trainer.init()
    loss, gradients = trainer.loss_and_gradients(state, batch)
    assert relative_error(loss, history[0][0]) <= TOLERANCE
    for module, expected in history[0][1].items():
        for path, value in expected.items():
            assert relative_error(gradients[module][path], value) <= TOLERANCE, (module, path)


def test_learning_rate_scale_and_optimizers_of_modules_act_on_their_module_alone():
    batch = make_batch("encoder")
    trainer = plain_trainer(
        optimizer={"encoder": optax.sgd(0.1), "head": optax.sgd(0.3)}, learning_rate_scale={"head": 0.5}
    )
    state = trainer.init()
    before = trainer.weights(state)
    _, gradients = trainer.loss_and_gradients(state, batch)
    after = trainer.weights(trainer.step(state, batch)[0])
    for module, rate in (("encoder", 0.1), ("head", 0.15)):
        for path, gradient in gradients[module].items():
            np.testing.assert_allclose(after[module][path], before[module][path] - rate * gradient, atol=1e-6)
