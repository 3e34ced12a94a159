"""Rows of a module that takes several microbatches at once: their order, and how its output is cut apart."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax import Edge, ModuleGraph
from hetjax.compilation.hlo import bytes_received
from hetjax.errors import ConfigError
from hetjax.meshes import Layout, Placement
from hetjax.stages.batch import input_shapes, place_inputs, rows_needed
from hetjax.stages.cut import cut_graph
from hetjax.stages.links import make_links
from hetjax.stages.row_subset import RowSubset
from hetjax.stages.window_cut import WindowCut
from hetjax.stages.windows import ONE_MICROBATCH, make_windows
from tests.harness.small_modules import IN, Encoder, Head, Middle


def window_of(count: int, rows: int, degree: int):
    return ONE_MICROBATCH.joined(count, degree).rows(rows)


def test_one_microbatch_has_its_rows_as_they_are():
    assert ONE_MICROBATCH.joined(1, 4) == ONE_MICROBATCH and ONE_MICROBATCH.size == 1
    np.testing.assert_array_equal(ONE_MICROBATCH.rows(5), range(5))


def test_each_device_has_a_part_of_every_microbatch_where_the_degree_divides_its_rows():
    assert window_of(count=2, rows=4, degree=2).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


def test_each_device_has_whole_microbatches_where_they_have_fewer_rows_than_devices():
    assert window_of(count=4, rows=1, degree=4).tolist() == [0, 1, 2, 3]
    # Devices 0 and 2 have the first rows of microbatches, 1 and 3 those of others.
    assert window_of(count=2, rows=2, degree=4).tolist() == [0, 2, 1, 3]


def test_windows_of_windows_hold_their_readers_order():
    projector = ONE_MICROBATCH.joined(2, 2)
    encoder = projector.joined(2, 4)
    assert (projector.size, encoder.size) == (2, 4)
    inner = projector.rows(4)
    expected = [block + start for block, start in itertools.product(np.split(inner, 4), (0, 8))]
    np.testing.assert_array_equal(encoder.rows(4), np.concatenate(expected))
    assert sorted(encoder.rows(4)) == list(range(16))


MESH = Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), ("data", "fsdp", "tensor"))


@pytest.mark.parametrize(
    ("spec", "dim", "count", "rows", "parts"),
    [
        (P(("data", "fsdp"), None, None), 0, 3, 4, 1),
        (P(("data", "fsdp"), None, "tensor"), 0, 4, 1, 4),
        (P(("data", "fsdp"), None, None), 0, 4, 2, 2),
        (P("fsdp", "data", None), 0, 4, 3, 2),
        (P(None, "tensor", None), 0, 2, 3, 1),
        (P("tensor", ("data", "fsdp"), None), 1, 6, 2, 2),
    ],
)
def test_a_window_is_cut_and_joined_where_it_lies(spec, dim, count, rows, parts):
    """Rows of the batch, two of the array each, are found in the microbatches that they belong to."""
    axes = spec[dim] if isinstance(spec[dim], tuple) else (spec[dim],) if spec[dim] else ()
    degree = int(np.prod([MESH.shape[axis] for axis in axes]))
    order = window_of(count, rows, degree)
    values = np.repeat(order, 2)[:, None, None] * 100 + np.arange(4)[:, None] * 10 + np.arange(2)
    values = np.moveaxis(values, 0, dim).astype(np.float32)
    x = jax.device_put(values, NamedSharding(MESH, spec))
    found = WindowCut(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), dim, count, rows, name="x").compile()
    assert len(found.shardings) == parts
    pieces = found.cut(x)
    assert list(pieces) == list(range(count))
    for index, piece in pieces.items():
        held = np.moveaxis(np.asarray(piece), dim, 0)[::2] // 100
        assert all((row == index * rows + place).all() for place, row in enumerate(held))
        assert piece.sharding == found.shardings[index // found.each]
    assert not any(bytes_received(program.text) for program in found.programs.values())
    joined = found.join(pieces)
    assert joined.sharding == x.sharding
    np.testing.assert_array_equal(joined, x)


def test_microbatches_on_devices_of_their_own_are_views():
    """No program runs, and no byte is copied: each piece is a shard of the window."""
    x = jax.device_put(jnp.arange(8.0).reshape(4, 2), NamedSharding(MESH, P(("data", "fsdp"), None)))
    found = WindowCut(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), 0, 4, 1, name="x")
    assert found.programs == {}
    whole = {shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards}
    for piece in found.cut(x).values():
        assert {shard.data.unsafe_buffer_pointer() for shard in piece.addressable_shards} <= whole


# ── on stages ────────────────────────────────────────────────────────────────────────────────────

ENDS = [Edge("encoder.features", "middle.features"), Edge("middle.output", "head.features")]
SKIP = Edge("encoder.features", "head.skip")


def graph_of(*edges: Edge) -> ModuleGraph:
    return ModuleGraph({"encoder": Encoder, "middle": Middle, "head": Head}, edges)


PLACEMENT = Placement(
    {
        "encoder": Layout(devices="0-3", data=4),
        "middle": Layout(devices="4-5", data=2),
        "head": Layout(devices="6-7", fsdp=2),
    }
)


def test_a_module_s_window_holds_its_readers_windows():
    windows = make_windows(graph_of(*ENDS), {"encoder": 1, "middle": 2, "head": 8}, PLACEMENT)
    assert {name: window.size for name, window in windows.items()} == {"head": 1, "middle": 4, "encoder": 8}
    assert windows["encoder"] == windows["middle"].joined(2, 4)


def test_readers_that_would_have_rows_in_different_orders_are_refused():
    with pytest.raises(ConfigError) as caught:
        make_windows(graph_of(*ENDS, SKIP), {"encoder": 1, "middle": 2, "head": 8}, PLACEMENT)
    assert str(caught.value) == (
        "microbatches: module 'encoder' (1) feeds 'middle' (2) and 'head' (8), which would have the rows of its "
        "microbatches lie in different orders; give 'middle' and 'head' the same number of microbatches, that of 'head'"
    )
    same = make_windows(graph_of(*ENDS, SKIP), {"encoder": 1, "middle": 8, "head": 8}, PLACEMENT)
    assert same["encoder"].size == 8


def test_devices_hold_the_rows_of_their_window_and_a_process_needs_those():
    graph = ModuleGraph({"encoder": Encoder, "head": Head}, [Edge("encoder.features", "head.features")])
    layouts = Placement({"encoder": Layout(devices="0-3", data=4), "head": Layout(devices="4", data=1)})
    placement = layouts.resolve(8)
    windows = make_windows(graph, {"encoder": 2, "head": 4}, layouts)
    stages = cut_graph(
        graph, placement, devices=jax.devices(), frozen=(), param_dtype="float32", compute_dtype=None, windows=windows
    )
    x = np.arange(16, dtype=np.float32)[:, None] * np.ones(IN, np.float32)
    given = RowSubset(x, tuple(range(16)), 16)  # rows are taken from it by slices alone
    batch = {"encoder": {"x": given}, "head": {"labels": np.arange(16)}, "loss_tokens": 16}
    shapes = input_shapes(batch, stages, make_links(graph, stages), 4)
    assert shapes["encoder"]["x"].shape == (8, IN) and shapes["head"]["labels"].shape == (4,)
    placed = place_inputs(batch, shapes, stages, 4)
    assert {each.microbatch for each in placed if each.stage == "encoder"} == {0, 1}
    for index in (0, 1):
        shards = sorted(placed["encoder", index]["x"].addressable_shards, key=lambda shard: shard.device.id)
        rows = [np.asarray(shard.data)[:, 0].tolist() for shard in shards]
        # One row of each of the window's two microbatches.
        assert rows == [[8 * index + place, 8 * index + 4 + place] for place in range(4)]
    assert rows_needed(stages, 16, 4) == tuple(range(16))
