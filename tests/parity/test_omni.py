"""A model with vision, audio and language, each on a mesh of its own with a layout of its own, equals one device."""

import functools
from collections.abc import Mapping

import numpy as np
import optax
import pytest

from hetjax import Trainer
from hetjax.meshes import Layout, Placement
from tests.harness.parity import problem
from tests.harness.parity.comparison import assert_trains_alike
from tests.harness.parity.omni import make_batch, make_graph
from tests.harness.parity.oracle import train_on_one_device

PLACEMENTS = {
    "three meshes": {
        "vision": Layout(devices="0-1", data=2),
        "audio": Layout(devices="2-3", tensor=2),
        "llm": Layout(devices="4-7", expert=2, tensor=2),
    },
    "context and stages": {
        "vision": Layout(devices="0-3", fsdp=2, tensor=2),
        "audio": Layout(devices="4-7", data=4),
        "llm": Layout(devices="0-7", stage=2, context=2, fsdp=2),
    },
    "colocated": {
        "vision": Layout(devices="0-7", data=4, tensor=2),
        "audio": Layout(devices="0-7", data=2, fsdp=2, tensor=2),
        "llm": Layout(devices="0-7", data=2, expert=2, context=2),
    },
}
LIMITS = {"float32": 1e-5, "float64": 1e-10}
# A layer of each kind. One case here is deeper, as the language model alone is in every layout (`test_hybrid`).
SHALLOW = "M*E"


MAX_GRAD_NORM = 1.0


make_optimizer = functools.partial(problem.make_optimizer, small_gradients=True)


@functools.cache
def graph_of(pruning_rate: float, pattern: str):
    return make_graph(pruning_rate, pattern=pattern)


@functools.cache
def reference(dtype: str, pruning_rate: float, pattern: str):
    optimizer = optax.chain(optax.clip_by_global_norm(MAX_GRAD_NORM), make_optimizer())
    graph = graph_of(pruning_rate, pattern)
    return train_on_one_device(graph, make_batch(dtype=np.dtype(dtype).type), optimizer, steps=3, dtype=dtype)


def check(
    placement: str, dtype: str, *, pruning_rate: float = 0.0, schedule: str = "1f1b",
    microbatches: int | Mapping[str, int] = 2, pattern: str = SHALLOW,
) -> None:  # fmt: skip
    history = reference(dtype, pruning_rate, pattern)
    trainer = Trainer(
        graph_of(pruning_rate, pattern), Placement(PLACEMENTS[placement]), optimizer=make_optimizer(),
        schedule=schedule, microbatches=microbatches, param_dtype=dtype, max_grad_norm=MAX_GRAD_NORM,
    )  # fmt: skip
    batch = make_batch(dtype=np.dtype(dtype).type)
    label = f"{placement} {dtype} {schedule}"
    assert_trains_alike(trainer, batch, history, limit=LIMITS[dtype], label=label)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.exhaustive), "float64"], indirect=True)
@pytest.mark.parametrize(
    "placement",
    # Of context and stages, the zero-bubble schedule and pruned videos below show more.
    [pytest.param(n, marks=pytest.mark.exhaustive) if n == "context and stages" else n for n in PLACEMENTS],
)
def test_every_placement_equals_one_device(placement, dtype):
    check(placement, dtype)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("placement", ["context and stages"])
def test_pruned_videos_equal_one_device(placement, float64):
    check(placement, "float64", pruning_rate=0.5)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize(
    ("placement", "schedule", "pattern"),
    [("context and stages", "zero_bubble", "MEM*EME"), ("colocated", "colocated", SHALLOW)],
)
def test_schedules_equal_one_device(placement, schedule, pattern, float64):
    check(placement, "float64", schedule=schedule, pattern=pattern)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize(
    ("placement", "microbatches"),
    [
        ("three meshes", {"llm": 4, "vision": 1, "audio": 2}),
        pytest.param("context and stages", {"llm": 4, "vision": 2, "audio": 1}, marks=pytest.mark.exhaustive),
    ],
)
def test_windows_of_packed_media_equal_one_device(placement, microbatches, float64):
    """Tokens of unlike numbers a row, and which of them pruning kept, reach the microbatch of their own row."""
    check(placement, "float64", pruning_rate=0.5, microbatches=microbatches)
