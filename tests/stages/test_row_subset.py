"""Rows of a global batch on the host of one process."""

from __future__ import annotations

import json
from types import MappingProxyType

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax import Edge, ModuleGraph
from hetjax.data import DataConfig, TrainData
from hetjax.errors import BatchError
from hetjax.meshes import Layout, Placement
from hetjax.stages.batch import input_shapes, rows_needed
from hetjax.stages.cut import cut_graph
from hetjax.stages.links import make_links
from hetjax.stages.row_subset import RowSubset
from hetjax.stages.windows import ONE_MICROBATCH
from tests.harness.processes import run_processes
from tests.harness.sample_loaders import make_loader
from tests.harness.small_modules import IN, Encoder, Head

BATCH, MICROBATCHES = 16, 2
ARRAY = np.arange(BATCH * 3 * 2, dtype=np.float32).reshape(BATCH, 3, 2)

# Over two processes of two devices each; each layout names what the processes take of a microbatch of 8.
LAYOUTS = {
    "split between the processes": {"encoder": Layout(devices="0-3", data=4), "head": Layout(devices="0-3", fsdp=4)},
    "copied in both": {"encoder": Layout(devices="0-3", data=2, tensor=2), "head": Layout(devices="0-3", tensor=4)},
    "a module each": {"encoder": Layout(devices="0-1", data=2), "head": Layout(devices="2-3", fsdp=2)},
    "across the border": {"encoder": Layout(devices="0", data=1), "head": Layout(devices="1,3", data=2)},
    "nothing in the second": {"encoder": Layout(devices="0", data=1), "head": Layout(devices="1", data=1)},
}


def subset(rows) -> RowSubset:
    return RowSubset(ARRAY[list(rows)], tuple(rows), BATCH)


def cut(layouts, windows=MappingProxyType({})) -> tuple:
    graph = ModuleGraph({"encoder": Encoder, "head": Head}, [Edge("encoder.features", "head.features")])
    placement = Placement(layouts).resolve(len(jax.devices()))
    stages = cut_graph(
        graph, placement, devices=jax.devices(), frozen=(), param_dtype="float32", compute_dtype=None, windows=windows
    )
    return graph, stages


def test_a_subset_shows_the_whole_array_without_holding_it():
    part = subset([3, 4, 9])
    assert np.shape(part) == part.shape == (BATCH, 3, 2)
    assert (part.dtype, part.ndim, np.ndim(part)) == (np.float32, 3, 3)
    assert np.shape(subset([])) == (BATCH, 3, 2)


@pytest.mark.parametrize("index", [np.s_[3:5], np.s_[9:], np.s_[4:5, 1:, :1], np.s_[-1:, 2:3], np.s_[7:7], np.s_[7:2]])
def test_rows_are_taken_by_their_global_numbers(index):
    np.testing.assert_array_equal(subset([3, 4, *range(9, 16)])[index], ARRAY[index], strict=True)


@pytest.mark.parametrize(
    ("index", "named"),
    [(np.s_[3:6], "rows 3:6 of 16 .* has not loaded 5;"), (np.s_[:], r"not loaded 0, 1, 2, 5, .*… \(14 rows\);")],
)
def test_rows_that_are_not_here_are_named(index, named):
    with pytest.raises(BatchError, match=named):
        subset([3, 4])[index]


def test_numpy_takes_a_complete_subset_for_an_array_and_refuses_any_other():
    np.testing.assert_array_equal(np.asarray(subset(range(BATCH))), ARRAY, strict=True)
    assert np.sum(subset(range(BATCH)), dtype=np.float64) == ARRAY.sum()
    with pytest.raises(BatchError, match="not loaded 0;"):
        np.sum(subset(range(1, BATCH)))


def test_rows_by_a_number_or_a_step_are_refused():
    for index in (3, np.s_[::2], [3, 4], (3, slice(None))):
        with pytest.raises(TypeError, match="by a slice start:stop"):
            subset(range(BATCH))[index]


@pytest.mark.parametrize(
    ("values", "rows", "message"),
    [
        (ARRAY[:2], (1, 0), "must ascend"),
        (ARRAY[:2], (15, 16), "at most 15"),
        (ARRAY[:2], (0,), r"\(2, 3, 2\) are given"),
    ],
)
def test_a_subset_that_contradicts_itself_is_refused(values, rows, message):
    with pytest.raises(BatchError, match=message):
        RowSubset(values, rows, BATCH)


def test_a_device_array_is_made_of_the_rows_that_its_devices_hold():
    sharding = NamedSharding(
        Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor")), P("data", None, "tensor")
    )
    array = jax.make_array_from_callback(ARRAY.shape, sharding, subset(range(BATCH)).__getitem__)
    np.testing.assert_array_equal(array, ARRAY)


def test_the_shapes_of_a_batch_of_subsets_are_those_of_the_whole():
    graph, stages = cut(LAYOUTS["a module each"])
    whole = {
        "encoder": {"x": np.zeros((BATCH, IN), np.float32)},
        "head": {"labels": np.zeros(BATCH, np.int32)},
        "loss_tokens": BATCH,
    }
    part = whole | {
        module: {name: RowSubset(array[2:4], (2, 3), BATCH) for name, array in whole[module].items()}
        for module in ("encoder", "head")
    }
    links = make_links(graph, stages)
    assert input_shapes(part, stages, links, MICROBATCHES) == input_shapes(whole, stages, links, MICROBATCHES)


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_process_needs_all_rows(name):
    assert rows_needed(cut(LAYOUTS[name])[1], BATCH, MICROBATCHES) == tuple(range(BATCH))


def test_a_batch_that_does_not_divide_is_refused():
    stages = cut(LAYOUTS["split between the processes"])[1]
    with pytest.raises(BatchError, match="not divisible into 3 microbatches"):
        rows_needed(stages, BATCH, 3)
    with pytest.raises(BatchError, match="data=4"):
        rows_needed(stages, BATCH, 8)


def addressable_rows(stages) -> list[int]:
    """The rows that lie on this process's devices when JAX lays out their numbers."""
    size, rows = BATCH // MICROBATCHES, set()
    for stage in stages:
        for index in range(MICROBATCHES):
            numbers = np.arange(index * size, (index + 1) * size)
            sharding = stage.port_sharding("x", (size,))
            placed = jax.make_array_from_callback((size,), sharding, lambda at, numbers=numbers: numbers[at])
            rows.update(*(np.asarray(shard.data).tolist() for shard in placed.addressable_shards))
    return sorted(rows)


def check_rows_and_data(path: str) -> dict:
    """In each of two processes: the rows needed, those that JAX places in it, and a batch loaded by rows."""
    found = {}
    for name, layouts in LAYOUTS.items():
        stages = cut(layouts)[1]
        local = [stage for stage in stages if stage.is_local]
        found[name] = (rows_needed(stages, BATCH, MICROBATCHES), addressable_rows(local))
    windows = {"encoder": ONE_MICROBATCH.joined(4, 4)}
    layouts = {"encoder": Layout(devices="0-3", data=4), "head": Layout(devices="1,3", data=2)}
    in_windows = rows_needed(cut(layouts, windows)[1], BATCH, 8)
    config = DataConfig(train=path, seq_len=40, batch_size=BATCH, workers=1, epochs=2, max_bad_share=0.5)
    needed = rows_needed(cut(LAYOUTS["split between the processes"])[1], BATCH, 1)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), P("data"))
    batches = 0
    for whole, part in zip(TrainData(make_loader(config)), TrainData(make_loader(config), needed), strict=True):
        for name, host in part.arrays["llm"].items():
            placed = jax.make_array_from_callback(host.shape, sharding, lambda index, host=host: host[index])
            for shard in placed.addressable_shards:
                np.testing.assert_array_equal(shard.data, whole.arrays["llm"][name][shard.index])
        batches += 1
    return {"rows": found, "batches": batches, "needed": needed, "in_windows": in_windows}


@pytest.mark.timeout(200)
def test_two_processes_need_exactly_the_rows_of_their_devices_and_load_them_alike(tmp_path):
    lines = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": str(i)}]}
        for i in range(3 * BATCH)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines).replace('"7?"', '"much too long for this"'))
    results = run_processes(2, check_rows_and_data, devices=2, path=str(path))
    for result in results:
        for name, (needed, addressable) in result["rows"].items():
            assert list(needed) == addressable, name
        assert result["batches"] == 6
    every = tuple(range(BATCH))
    first, second = ({name: rows for name, (rows, _) in result["rows"].items()} for result in results)
    assert first["split between the processes"] == (0, 1, 2, 3, 8, 9, 10, 11)
    assert second["split between the processes"] == (4, 5, 6, 7, 12, 13, 14, 15)
    assert first["copied in both"] == second["copied in both"] == every
    assert (first["a module each"], second["a module each"]) == (every, every)
    assert (first["across the border"], second["across the border"]) == (every, (4, 5, 6, 7, 12, 13, 14, 15))
    assert (first["nothing in the second"], second["nothing in the second"]) == (every, ())
    assert [result["needed"] for result in results] == [every[:8], every[8:]]
    # The first device of the pairs that a window's microbatches of two lie on is in the first process.
    assert [result["in_windows"] for result in results] == [every[::2], every[1::2]]
