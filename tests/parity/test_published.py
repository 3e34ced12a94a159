"""The layouts that the reference system runs, each against one device: losses, gradients, weights."""

import functools

import optax
import pytest

from hetjax import Trainer
from hetjax.meshes import Placement
from tests.harness.parity.comparison import assert_trains_alike
from tests.harness.parity.oracle import train_on_one_device
from tests.harness.parity.problem import make_optimizer
from tests.harness.parity.published import CASES, TOWER, make_batch, make_graph

STEPS = 2
DEFAULT = ("trained, apart, 2/2/1|2/1/2",)
SLOW = ("trained, window and offload, 4/1/1|2/1/2", "uneven, 1/2/1|2/1/3", "apart, DP4 to CP2 PP2")


def marked():
    """A few by default and in the slow suite, all by hand."""
    slow = (pytest.mark.slow, pytest.mark.quick)
    for name in CASES:
        marks = () if name in DEFAULT else slow if name in SLOW else (*slow, pytest.mark.exhaustive)
        yield pytest.param(name, marks=marks)


@functools.cache
def reference(kind: str, samples: int, even: bool, frozen: tuple[str, ...]):
    still = optax.transforms.partition(
        {"moves": make_optimizer(small_gradients=True), "still": optax.set_to_zero()},
        lambda weights: {
            module: {path: "still" if f"{module}.{path.partition('/')[0]}" in frozen else "moves" for path in own}
            for module, own in weights.items()
        },
    )
    batch = make_batch(kind, samples, even)
    return train_on_one_device(make_graph(kind), batch, still, steps=STEPS, dtype="float64")


@pytest.mark.parametrize("name", list(marked()))
def test_a_published_layout_equals_one_device(name, float64):
    case = CASES[name]
    batch = make_batch(case.kind, case.samples, case.even)
    history = reference(case.kind, case.samples, case.even, case.frozen)
    trainer = Trainer(
        make_graph(case.kind), Placement(case.layouts), optimizer=make_optimizer(small_gradients=True),
        schedule=case.schedule, microbatches=case.microbatches, frozen=case.frozen, offload=case.offload,
        param_dtype="float64", compute_dtype="float64", max_grad_norm=None,
    )  # fmt: skip
    assert_trains_alike(trainer, batch, history, limit=1e-10, label=name, frozen=case.frozen)


def test_the_table_is_whole():
    assert len(CASES) == 3 * (10 + 8) + 2 + 16 + 2 * 2 * 2 + 6 + 2
    assert all(each.partition(".")[2] in dict(make_graph("vision").modules["vision"].__dict__) for each in TOWER)
