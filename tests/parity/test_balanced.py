"""Media spread over the shards of their encoders give the numbers of one device with media in their samples' rows."""

import functools
from collections.abc import Mapping

import numpy as np
import optax
import pytest

from hetjax import Trainer
from hetjax.errors import BatchError
from hetjax.meshes import Layout, Placement
from tests.harness.parity import balanced, problem
from tests.harness.parity.comparison import assert_trains_alike
from tests.harness.parity.omni import make_graph
from tests.harness.parity.oracle import relative_error, train_on_one_device
from tests.harness.processes import run_processes

MAX_GRAD_NORM = 1.0
PLACEMENTS = {
    "fan in": {
        "vision": Layout(devices="0-3", data=4),
        "audio": Layout(devices="4-5", data=2),
        "llm": Layout(devices="6-7", data=2),
    },
    "fan out": {
        "vision": Layout(devices="0-1", data=2),
        "audio": Layout(devices="2-3", data=2),
        "llm": Layout(devices="4-7", data=2, tensor=2),
    },
    "context on both sides": {
        "vision": Layout(devices="0-3", data=2, context=2),
        "audio": Layout(devices="0-3", data=4),
        "llm": Layout(devices="4-7", data=2, context=2),
    },
    "colocated": {
        "vision": Layout(devices="0-7", data=4, tensor=2),
        "audio": Layout(devices="0-7", data=2, fsdp=2, tensor=2),
        "llm": Layout(devices="0-7", data=2, expert=2, context=2),
    },
    "stages": {
        "vision": Layout(devices="0-3", fsdp=2, tensor=2),
        "audio": Layout(devices="4-7", data=4),
        "llm": Layout(devices="0-7", stage=2, context=2, fsdp=2),
    },
}
make_optimizer = functools.partial(problem.make_optimizer, small_gradients=True)


@functools.cache
def graph_of(pruning_rate: float):
    return make_graph(pruning_rate, pattern="M*E")


@functools.cache
def reference(pruning_rate: float):
    optimizer = optax.chain(optax.clip_by_global_norm(MAX_GRAD_NORM), make_optimizer())
    batch = balanced.batches(pruning_rate, None)
    return train_on_one_device(graph_of(pruning_rate), batch, optimizer, steps=2, dtype="float64")


def make_trainer(
    placement: str, microbatches: int | Mapping[str, int], pruning_rate: float, schedule: str, **settings
) -> Trainer:
    return Trainer(
        graph_of(pruning_rate), Placement(PLACEMENTS[placement]), optimizer=make_optimizer(), schedule=schedule,
        microbatches=microbatches, param_dtype="float64", max_grad_norm=MAX_GRAD_NORM, **settings,
    )  # fmt: skip


def check(
    placement: str, *, microbatches: int | Mapping[str, int] = 2, pruning_rate: float = 0.0, schedule: str = "1f1b",
    **settings,
) -> tuple[Trainer, dict]:  # fmt: skip
    history = reference(pruning_rate)
    trainer = make_trainer(placement, microbatches, pruning_rate, schedule, **settings)
    batch = balanced.batches(pruning_rate, trainer)
    moved = [np.any(routes[..., :1] // routes.shape[1] != np.arange(len(routes)).reshape(-1, *[1] * (routes.ndim - 1)),
                    where=routes[..., :1] >= 0) for routes in batch["routes"].values()]  # fmt: skip
    assert any(moved), "nothing was moved"
    assert_trains_alike(trainer, batch, history, limit=1e-10, label=f"{placement} {schedule}")
    assert all(traffic.needed <= traffic.sent for traffic in trainer.traffic.values())
    assert any(traffic.needed for traffic in trainer.traffic.values())
    return trainer, batch


@pytest.mark.slow
@pytest.mark.quick
def test_balanced_media_equal_one_device_and_wrong_routes_are_refused(float64):
    trainer, batch = check("fan in")
    tokens = batch["routes"]["vision.tokens"]
    last = tokens.size - 1  # of the last row, which is in another microbatch than the first one
    for wrong, message in [
        (np.where(np.arange(8)[:, None] > 0, tokens, last), "encoded together"),
        (tokens[:, :-1], "keep shapes fixed"),
    ]:
        with pytest.raises(BatchError, match=message):
            trainer._place({**batch, "routes": {**batch["routes"], "vision.tokens": wrong}}, trainer.compiled)
    with pytest.raises(BatchError, match=r"no routes for 'audio\.tokens'"):
        trainer._place({**batch, "routes": {"vision.tokens": tokens}}, trainer.compiled)
    for port, routes, message in [
        ("vision.hidden", tokens, "no edge leaves"),
        ("vision.tokens", tokens[:4], "of all rows of the batch"),
        ("vision.tokens", tokens.astype(float), "give integers"),
    ]:
        with pytest.raises(BatchError, match=message):
            trainer.trace({**batch, "routes": {port: routes}})


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize(
    "placement",
    [
        "colocated",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("fan out", "context on both sides", "stages")),
    ],
)
def test_every_placement_equals_one_device(placement, float64):
    check(placement)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize(
    ("placement", "microbatches"),
    [
        ("context on both sides", {"llm": 4, "vision": 1, "audio": 2}),
        pytest.param("stages", {"llm": 4, "vision": 2, "audio": 1}, marks=pytest.mark.exhaustive),
    ],
)
def test_windows_and_pruned_videos_equal_one_device(placement, microbatches, float64):
    """Media move between all rows that an encoder takes at once; which tokens pruning kept goes with them."""
    check(placement, microbatches=microbatches, pruning_rate=0.5)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.quick
def test_a_split_backward_and_offloaded_encoders_equal_one_device(float64):
    check("stages", schedule="zero_bubble", offload=["vision"])


def errors_over_processes(name: str) -> list[float]:
    """Runs in every process: the error of the loss of two steps, the second of which follows the gradients.

    Each makes the reference itself: initial weights are rounded as the compiler's options of a process say."""
    trainer = make_trainer(name, 2, 0.0, "1f1b")
    batch, state = balanced.batches(0.0, trainer), trainer.init(0)
    found = []
    for loss, *_ in reference(0.0):
        state, metrics = trainer.step(state, batch)
        found.append(relative_error(np.asarray(metrics["loss"]), loss))
    return found


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("name", ["fan in", pytest.param("colocated", marks=pytest.mark.exhaustive)])
def test_four_processes_equal_one_device(name):
    for errors in run_processes(4, errors_over_processes, devices=2, x64=True, timeout=600, name=name):
        assert len(errors) == 2 and max(errors) < 1e-10, errors
