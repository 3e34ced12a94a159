"""Edges out of middle layers and into inner ones, each straight from the stage that makes it to the one that reads."""

import functools

import optax
import pytest

from hetjax import Trainer
from hetjax.meshes import Layout, Placement
from hetjax.schedule import SCHEDULES
from tests.harness.choices import others_slow
from tests.harness.graphs.plain_gradients import largest_error, plain_gradients
from tests.harness.graphs.taps import make_batch, make_graph

EYE, LLM, ALL = Layout(devices="0-3", data=4), Layout(devices="4-7", data=2, tensor=2), Layout(data=4, tensor=2)
LAYOUTS = {
    "stages-1-1": (EYE, LLM),
    "stages-1-2": (EYE, Layout(devices="4-7", stage=2, tensor=2)),
    "stages-2-1": (Layout(devices="0-3", stage=2, data=2), LLM),
    "stages-2-4": (Layout(devices="0-3", stage=2, data=2), Layout(devices="4-7", stage=4)),
    "stages-4-4": (Layout(devices="0-3", stage=4), Layout(devices="4-7", stage=4)),
    "stages-4-2-chunks": (Layout(devices="0-3", stage=4), Layout(devices="4-7", stage=2, data=2, chunks=2)),
    "chunks-chunks": (
        Layout(devices="0-3", stage=2, data=2, chunks=2),
        Layout(devices="4-7", stage=2, data=2, chunks=2),
    ),
    "colocated-1-4": (ALL, Layout(stage=4, data=2)),
    "colocated-4-2": (Layout(stage=4, data=2), Layout(stage=2, fsdp=2, tensor=2)),
}
QUICK = [("stages-2-4", "1f1b"), ("stages-4-2-chunks", "interleaved_1f1b"), ("colocated-1-4", "bubble_fill")]
MORE = [(name, schedule) for name in LAYOUTS for schedule in SCHEDULES if (name, schedule) not in QUICK]


@functools.cache
def graph(gradient: bool = True):
    return make_graph(gradient=gradient)


@functools.cache
def expected(gradient: bool = True):
    return plain_gradients(graph(gradient), make_batch(), {"llm": 24}, {"llm": 1.0})


def make_trainer(name: str, schedule: str = "1f1b", *, gradient: bool = True, **options) -> Trainer:
    placement = Placement(dict(zip(("eye", "llm"), LAYOUTS[name], strict=True)))
    options = {"microbatches": 6, "param_dtype": "float64", **options}
    return Trainer(graph(gradient), placement, optimizer=optax.sgd(1e-2), schedule=schedule, **options)


def check(trainer: Trainer, *, gradient: bool = True) -> None:
    assert largest_error(trainer, make_batch(), expected(gradient)) <= 1e-10


@pytest.mark.parametrize(("name", "schedule"), others_slow(QUICK, QUICK))
def test_inner_edges_equal_one_device(float64, name, schedule):
    check(make_trainer(name, schedule))


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize(("name", "schedule"), MORE[::5])
def test_more_inner_edges_equal_one_device(float64, name, schedule):
    check(make_trainer(name, schedule))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.quick
@pytest.mark.parametrize(("name", "schedule"), MORE)
def test_every_inner_edge_equals_one_device(float64, name, schedule):
    check(make_trainer(name, schedule))


def test_inner_edges_cross_out_of_a_window(float64):
    check(make_trainer("stages-2-1", microbatches={"eye": 2, "llm": 6}))


def test_inner_edges_may_let_no_gradient_through(float64):
    check(make_trainer("stages-2-4", gradient=False), gradient=False)


def test_an_inner_edge_leads_straight_from_stage_to_stage():
    links = {link.name for link in make_trainer("stages-2-4", param_dtype="float32").links}
    taps = {f"eye.{layer // 2}.tap_{layer}->llm.{layer}.tap_{layer}" for layer in range(4)}
    hidden = {"eye.0.hidden->eye.1.hidden", *(f"llm.{stage}.hidden->llm.{stage + 1}.hidden" for stage in range(3))}
    assert links == taps | hidden | {"eye.1.tokens->llm.0.x"}
