"""Several modules with a loss, each over a count of its own, and metrics beside them, against one device."""

import functools

import optax
import pytest
from flax import nnx

from hetjax import ModuleGraph, Sum, Trainer
from hetjax.errors import BatchError, ConfigError, GraphError
from hetjax.meshes import Layout, Placement
from hetjax.schedule import SCHEDULES
from tests.harness.choices import others_slow
from tests.harness.graphs.losses import LOSSES, Eye, counts, make_batch, make_graph
from tests.harness.graphs.plain_gradients import largest_error, plain_gradients, plain_metrics
from tests.harness.parity.oracle import relative_error

L = Layout
LAYOUTS = {
    "disjoint": (L(devices="0-1", data=2), L(devices="2-5", data=2, fsdp=2), L(devices="6", data=1), L(devices="7")),
    "stages": (L(devices="0-1", data=2), L(devices="2-5", stage=4), L(devices="6-7", data=2), L(devices="6-7", fsdp=2)),
    "colocated": (L(data=4, tensor=2), L(stage=2, tensor=4), L(data=4, tensor=2), L(fsdp=4, tensor=2)),
    "windows": (L(devices="0-1", data=2), L(devices="2-5", data=2, tensor=2), L(devices="6"), L(devices="7")),
    "chunks": (
        L(devices="0-3", data=4),
        L(devices="4-7", stage=2, chunks=2, data=2),
        L(data=4, tensor=2),
        L(devices="0"),
    ),
}
QUICK = [("disjoint", "1f1b"), ("stages", "zero_bubble")]
MORE = [(name, schedule) for name in LAYOUTS for schedule in SCHEDULES if (name, schedule) not in QUICK]


@functools.cache
def graph(gradient: bool = True):
    return make_graph(gradient=gradient)


@functools.cache
def expected(gradient: bool = True):
    return plain_gradients(graph(gradient), make_batch(), counts(make_batch()), LOSSES)


def make_trainer(name: str, schedule: str = "1f1b", *, gradient: bool = True, **options) -> Trainer:
    placement = Placement(dict(zip(("eye", "llm", "probe", "behind"), LAYOUTS[name], strict=True)))
    options = {"microbatches": 6, "param_dtype": "float64", **options}
    return Trainer(graph(gradient), placement, optimizer=optax.sgd(1e-2), schedule=schedule, **options)


def check(trainer: Trainer, *, gradient: bool = True) -> None:
    batch = make_batch()
    assert largest_error(trainer, batch, expected(gradient)) <= 1e-10
    wanted = plain_metrics(graph(gradient), batch, counts(batch))
    _, found = trainer.step(trainer.init(), batch)
    assert set(found) == {"loss", "grad_norm", *wanted}
    for name, value in wanted.items():
        assert relative_error(found[name], value) <= 1e-10, name


@pytest.mark.parametrize(("name", "schedule"), others_slow(QUICK, QUICK))
def test_losses_and_metrics_equal_one_device(float64, name, schedule):
    check(make_trainer(name, schedule))


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize(("name", "schedule"), MORE[::4])
def test_more_losses_and_metrics_equal_one_device(float64, name, schedule):
    check(make_trainer(name, schedule))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.quick
@pytest.mark.parametrize(("name", "schedule"), MORE)
def test_all_losses_and_metrics_equal_one_device(float64, name, schedule):
    check(make_trainer(name, schedule))


@pytest.mark.slow
@pytest.mark.quick
def test_a_loss_may_be_behind_one_that_it_gives_no_gradient(float64):
    check(make_trainer("stages", gradient=False), gradient=False)


@pytest.mark.slow
@pytest.mark.quick
def test_modules_that_feed_a_loss_may_take_several_microbatches_at_once(float64):
    check(make_trainer("windows", microbatches={"eye": 3, "llm": 3, "probe": 6}))


def test_modules_that_end_the_graph_have_as_many_microbatches():
    with pytest.raises(
        ConfigError, match=r"modules 'behind' \(3\) and 'probe' \(6\) both end the graph; microbatches are"
    ):
        make_trainer("disjoint", microbatches={"behind": 3, "probe": 6}, param_dtype="float32")


def test_a_loss_of_a_frozen_branch_is_counted_and_has_no_backward(float64):
    trainer = make_trainer("disjoint", trained=("llm", "behind"))
    loss, gradients = trainer.loss_and_gradients(trainer.init(), make_batch())
    assert relative_error(loss, expected()[0]) <= 1e-10
    assert not trainer.compiled.programs["probe"].has_backward
    for path, gradient in gradients["llm"].items():
        assert relative_error(gradient, expected()[1]["llm"][path]) <= 1e-10
    assert {module for module, own in gradients.items() if own} == {"llm", "behind"}


def test_counts_may_be_given_for_each_loss(float64):
    batch = make_batch()
    trainer = make_trainer("disjoint")
    given = {"llm": 5.0, "behind": 2.0}
    wanted = plain_gradients(graph(), batch, {**counts(batch), **given}, LOSSES)
    assert largest_error(trainer, {**batch, "loss_tokens": given}, wanted) <= 1e-10


def test_a_count_for_several_losses_or_none_is_refused():
    batch = make_batch()
    trainer = make_trainer("disjoint", param_dtype="float32")
    with pytest.raises(
        BatchError, match=r"has loss_tokens=3 for the losses of llm, probe, behind, each of which has a"
    ):
        trainer.trace({**batch, "loss_tokens": 3})
    with pytest.raises(
        BatchError, match=r"has loss_tokens of 'eye', which holds no loss; those that do are llm, probe"
    ):
        trainer.trace({**batch, "loss_tokens": {"eye": 3}})


def test_metrics_of_a_module_without_a_loss_are_refused():
    found = make_graph()
    telling = ModuleGraph({**found.modules, "eye": TellingEye(nnx.Rngs(0))}, found.edges, losses=LOSSES)
    placement = make_trainer("disjoint", param_dtype="float32").placement.placement
    with pytest.raises(GraphError, match=r"module 'eye' returns the metric 'mean', but stage eye holds no loss"):
        Trainer(telling, placement, optimizer=optax.sgd(1e-2)).trace(make_batch())


class TellingEye(Eye):
    def __call__(self, x):
        return {**super().__call__(x), "mean": Sum(x.sum())}
