"""A module that takes several microbatches at once changes no number, in any placement, layout or schedule."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.errors import ConfigError, GraphError
from hetjax.meshes import Layout as L
from hetjax.meshes import Placement
from hetjax.schedule import Kind
from tests.harness.parity.comparison import TOLERANCE, assert_equal, largest_errors, make_trainer
from tests.harness.parity.oracle import relative_error
from tests.harness.parity.problem import make_batch as make_images
from tests.harness.small_modules import CLASSES, IN, Encoder, Head, Middle, Vote

DISJOINT = L(devices="0-3", data=4)
# {name: (vision layout, llm layout, schedule, microbatches)}; 32 samples.
CASES = {
    "all-at-once": (DISJOINT, L(devices="4-7", stage=2, tensor=2), "1f1b", {"llm": 8, "vision": 1}),
    "parts": (L(data=4, tensor=2), L(data=2, tensor=2, context=2), "gpipe", {"llm": 16, "vision": 4}),
    "two-windows": (DISJOINT, L(devices="4-7", data=2, tensor=2), "1f1b", {"llm": 4, "vision": 2}),
    "fewer-rows-than-devices": (DISJOINT, L(devices="4-7", data=2, tensor=2), "1f1b", {"llm": 16, "vision": 2}),
    "colocated": (L(data=8), L(stage=2, data=2, tensor=2), "colocated", {"llm": 8, "vision": 1}),
    "bubble-fill": (L(data=8), L(stage=4, tensor=2), "bubble_fill", {"llm": 8, "vision": 2}),
    "overlapping": (DISJOINT, L(devices="2-5", stage=2, tensor=2), "zero_bubble", {"llm": 8, "vision": 2}),
    "fsdp": (L(devices="0-3", fsdp=2, data=2), L(devices="2-5", data=4), "1f1b", {"llm": 8, "vision": 2}),
    "chunks": (
        L(devices="0-3", stage=2, tensor=2), L(devices="4-7", stage=2, data=2, chunks=2), "interleaved_1f1b",
        {"llm": 8, "vision": 2},
    ),
    "encoder-in-chunks": (
        L(devices="0", chunks=2), L(devices="2-5", stage=4), "interleaved_1f1b", {"llm": 8, "vision": 4},
    ),
    "homogeneous": (L(data=4, tensor=2), L(data=4, tensor=2), "colocated", {"llm": 8, "vision": 2}),
    "same-devices-one-row": (L(data=8), L(fsdp=2, tensor=2, context=2), "1f1b", {"llm": 16, "vision": 2}),
}  # fmt: skip
QUICK = ["parts"]
EXHAUSTIVE = ["two-windows", "fsdp", "homogeneous", "chunks"]


def cases():
    """One by default, and all but a few of the others in `.ci/run`."""
    for name in CASES:
        marks = [pytest.mark.slow, pytest.mark.quick] if name not in QUICK else []
        yield pytest.param(name, marks=[*marks, pytest.mark.exhaustive] if name in EXHAUSTIVE else marks)


@pytest.mark.parametrize("name", list(cases()))
@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_windows_equal_one_device(name, dtype):
    *layouts, schedule, microbatches = CASES[name]
    layers = 4 if "stage" in str(layouts[1]) and layouts[1].stage_count > 2 else 2
    trainer = make_trainer(layouts, dtype, schedule, microbatches, layers=layers)
    forwards = [action for action in trainer.schedule.on(trainer.stages[0].name) if action.kind is Kind.FORWARD]
    assert len(forwards) == microbatches["vision"]
    assert_equal(largest_errors(trainer, dtype, layers=layers), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parts", "fewer-rows-than-devices", "colocated"])
def test_a_window_moves_as_many_bytes_as_its_microbatches_one_by_one(name):
    *layouts, schedule, microbatches = CASES[name]
    moved = []
    # Without windows no more microbatches than the encoder's devices can share.
    for counts in (4, microbatches):
        step = make_trainer(layouts, "float32", schedule, counts).trace(make_images()).step
        moved.append(0)
        for link, boundary in step.boundaries.items():
            times = step.schedule.count(step.links[link].source) * boundary.each
            plans = [transport.plan for _, transport in boundary.transports]
            moved[-1] += times * sum(plan.bytes_moved + plan.bytes_gathered for plan in plans)
    assert moved[0] == moved[1] > 0


# ── chains and branches ──────────────────────────────────────────────────────────────────────────

SAMPLES = 48


@pytest.fixture
def modules():
    kinds = {"encoder": Encoder, "middle": Middle, "vote": Vote, "head": Head}
    return {name: kind(nnx.Rngs(seed)) for seed, (name, kind) in enumerate(kinds.items())}


def make_batch():
    random = np.random.default_rng(0)
    x = random.normal(size=(SAMPLES, IN)).astype(np.float32)
    return {
        "encoder": {"x": x},
        "head": {"labels": random.integers(0, CLASSES, SAMPLES).astype(np.int32)},
        "loss_tokens": SAMPLES,
    }


EDGES = [
    Edge("encoder.features", "middle.features"),
    Edge("middle.output", "head.features"),
    Edge("middle.output", "vote.features", gradient=False),
    Edge("vote.winner", "head.shift", gradient=False),
]
LAYOUTS = {
    "encoder": L(devices="0-3", data=4),
    "middle": L(devices="3-5", data=3),
    "vote": L(devices="4-5", data=2),
    "head": L(devices="6-7", data=2),
}


def by_hand(modules, batch):
    """Loss and gradients by module and path, of plain calls on one device in float64."""
    definition, params, rest = nnx.split(nnx.Dict(modules), nnx.Param, ...)
    params = jax.tree.map(lambda x: x.astype("float64"), params)

    def loss_of(params):
        called = nnx.merge(definition, params, rest, copy=True)
        middle = called["middle"](**called["encoder"](batch["encoder"]["x"].astype("float64")))
        shift = called["vote"](middle)["winner"] if "vote" in modules else None
        return called["head"](middle, batch["head"]["labels"], shift=shift)["loss"] / SAMPLES

    loss, gradients = jax.value_and_grad(loss_of)(params)
    found = {}
    for (module, *path), leaf in nnx.to_flat_state(gradients):
        found.setdefault(module, {})["/".join(map(str, path))] = np.asarray(leaf[...])
    return loss, found


def trainer_of(modules, layouts, microbatches, schedule="1f1b") -> Trainer:
    edges = [edge for edge in EDGES if "vote" in modules or "vote" not in edge.name]
    return Trainer(
        ModuleGraph(modules, edges),
        Placement({name: layouts[name] for name in modules}),
        optimizer=optax.sgd(0.1),
        schedule=schedule,
        microbatches=microbatches,
        param_dtype="float64",
    )


@pytest.mark.parametrize(
    "microbatches",
    [{"head": 8, "middle": 4, "encoder": 1}, {"head": 8, "encoder": 2}],
    ids=["each-a-count-of-its-own", "left-out-as-its-reader"],
)
@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_a_chain_with_a_count_at_each_link_equals_plain_calls(modules, microbatches, dtype):
    del modules["vote"]
    check_gradients(trainer_of(modules, LAYOUTS, microbatches), *by_hand(modules, make_batch()))


@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_a_module_that_integers_leave_may_take_more_microbatches_at_once(modules, dtype):
    """A tensor without a gradient is cut like any other, and a port feeds links that cut it and one that does not."""
    layouts = {**LAYOUTS, "middle": L(devices="3-4", data=2)}
    trainer = trainer_of(modules, layouts, {"head": 8, "vote": 2, "middle": 2, "encoder": 1}, "gpipe")
    check_gradients(trainer, *by_hand(modules, make_batch()))


def check_gradients(trainer, loss, gradients):
    found, actual = trainer.loss_and_gradients(trainer.init(), make_batch())
    assert relative_error(found, loss) <= TOLERANCE["float64"]
    for module, expected in gradients.items():
        for path, reference in expected.items():
            assert relative_error(actual[module][path], reference) <= TOLERANCE["float64"], (module, path)


def test_an_output_without_a_batch_dim_is_refused():
    class Unnamed(Encoder):
        port_dims = {"features": (None, "embed")}  # noqa: RUF012

    graph = ModuleGraph({"encoder": Unnamed, "head": Head}, [Edge("encoder.features", "head.features")])
    placement = Placement({"encoder": L(devices="0"), "head": L(devices="1")})
    trainer = Trainer(graph, placement, optimizer=optax.sgd(0.1), microbatches={"head": 4, "encoder": 2})
    with pytest.raises(
        GraphError, match=r"takes 2 microbatches at once, but its output 'features' .* no dim \"batch\""
    ):
        trainer.trace(make_batch())


@pytest.mark.parametrize(
    ("microbatches", "message"),
    [
        (
            {"head": 2, "encoder": 4},
            "module 'encoder' has 4 and feeds 'head', which has 2; .* divides 2, or 'head' a mul",
        ),
        ({"head": 6, "encoder": 4}, "module 'encoder' has 4 and feeds 'head', which has 6"),
        (
            {"head": 2, "eye": 1},
            "microbatches names module 'eye', which the graph lacks; its modules are encoder, head",
        ),
        ({"head": 0}, "microbatches of module 'head'=0; give a whole number, 1 or more"),
        ({"head": 2, "encoder": -1}, "microbatches of module 'encoder'=-1"),
        ({"head": 2.0}, "microbatches of module 'head'=2.0"),
        ({"encoder": 1}, "has no number for module 'head', which holds the loss; add one"),
        ({}, "has no number for module 'head'"),
        (0, "microbatches=0; give a whole number, 1 or more"),
    ],
)
def test_microbatches_that_mean_nothing_are_refused(microbatches, message):
    graph = ModuleGraph({"encoder": Encoder, "head": Head}, [Edge("encoder.features", "head.features")])
    placement = Placement({"encoder": L(devices="0"), "head": L(devices="1")})
    with pytest.raises(ConfigError, match=message):
        Trainer(graph, placement, optimizer=optax.sgd(0.1), microbatches=microbatches)
