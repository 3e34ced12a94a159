import collections
import itertools
import math
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hetjax.boundary import Tiling, make_plan
from hetjax.boundary.rounds import make_rounds
from hetjax.errors import BoundaryError

MESHES = [(1,), (2,), (3,), (4,), (6,), (8,), (2, 2), (2, 3), (3, 2), (4, 2), (2, 2, 2)]


def make_tiling(devices, sizes: tuple[int, ...], *spec: tuple[int, ...]) -> Tiling:
    """A tiling whose axes are called by their numbers."""
    return Tiling(
        axes=tuple((str(axis), size) for axis, size in enumerate(sizes)),
        devices=tuple(devices),
        spec=tuple(tuple(str(axis) for axis in axes) for axes in spec),
    )


@st.composite
def tilings(draw, first_device: int, ndim: int, permute: bool = False, meshes=MESHES):
    """Any mesh of one to eight devices, each of its axes on some dim or on none."""
    sizes = draw(st.sampled_from(meshes))
    numbers = range(first_device, first_device + math.prod(sizes))
    spec: list[list[int]] = [[] for _ in range(ndim)]
    for axis in draw(st.permutations(range(len(sizes)))):
        dim = draw(st.sampled_from([*range(ndim), None]))
        if dim is not None:
            spec[dim].append(axis)
    return make_tiling(draw(st.permutations(numbers)) if permute else numbers, sizes, *map(tuple, spec))


def cells_of(tiling: Tiling, shape, device: int) -> set[tuple[int, ...]]:
    """Every element that a device holds, counted out one by one."""
    spans = [size // count for size, count in zip(shape, tiling.counts, strict=True)]
    return set(
        itertools.product(
            *(range(i * span, (i + 1) * span) for i, span in zip(tiling.tile_of[device], spans, strict=True))
        )
    )


def cells_of_piece(plan, piece) -> set[tuple[int, ...]]:
    spans = [size // cells for size, cells in zip(plan.shape, plan.grid, strict=True)]
    return set(itertools.product(*(range(i * s, (i + 1) * s) for i, s in zip(piece, spans, strict=True))))


def row_major_slot(plan, tiling: Tiling, piece) -> int:
    """Number of a piece among those of its tile, counted in row-major order."""
    spans = [cells // count for cells, count in zip(plan.grid, tiling.counts, strict=True)]
    return list(itertools.product(*map(range, spans))).index(
        tuple(p % span for p, span in zip(piece, spans, strict=True))
    )


def assert_pieces_arrive(plan) -> None:
    """Every destination device gets each piece of its finer tile once, from a holder: itself where it is one."""
    if plan.broadcast_axes:
        receivers = {
            device
            for device, place in plan.destination.place_of.items()
            if all(place[axis] == 0 for axis in plan.broadcast_axes)
        }
    else:
        receivers = set(plan.destination.devices)
    assert {move.destination for move in plan.moves} == receivers
    arrived = collections.defaultdict(list)
    for move in plan.moves:
        piece = cells_of_piece(plan, move.piece)
        if move.relay:
            assert any(
                (m.destination, m.piece) == (move.source, move.piece) for m in plan.moves if m.relay < move.relay
            )
        else:
            assert piece <= cells_of(plan.source_fine, plan.shape, move.source)
        if move.destination in plan.source.devices and move.source != move.destination:
            assert not piece <= cells_of(plan.source_fine, plan.shape, move.destination)
        assert piece <= cells_of(plan.destination_fine, plan.shape, move.destination)
        sender = plan.destination_fine if move.relay else plan.source_fine
        assert move.source_slot == row_major_slot(plan, sender, move.piece)
        assert move.destination_slot == row_major_slot(plan, plan.destination_fine, move.piece)
        arrived[move.destination].append(piece)
    for device in receivers:
        pieces = arrived[device]
        union = set().union(*pieces)
        assert len(union) == sum(map(len, pieces)), "no piece comes twice"
        assert union == cells_of(plan.destination_fine, plan.shape, device)


@settings(max_examples=120, deadline=None)
@given(source=tilings(0, 2), destination=tilings(8, 2), data=st.data())
def test_every_piece_arrives_once_from_a_device_that_holds_it(source, destination, data):
    smallest = map(math.lcm, source.counts, destination.counts)
    shape = tuple(size * data.draw(st.sampled_from([1, 2, 3])) for size in smallest)
    assert_pieces_arrive(make_plan(shape, 4, source, destination))


@settings(max_examples=80, deadline=None)
@given(source=tilings(0, 2, permute=True), destination=tilings(0, 2, permute=True))
def test_pieces_arrive_on_shared_devices_too(source, destination):
    assert_pieces_arrive(make_plan((24, 24), 4, source, destination))


@settings(max_examples=150, deadline=None)
@given(source=tilings(0, 2), destination=tilings(8, 2), data=st.data())
def test_disjoint_meshes_move_each_byte_once(source, destination, data):
    """Whatever the shape: 1 and 5 are sizes that copies cannot share out."""
    smallest = map(math.lcm, source.counts, destination.counts)
    shape = tuple(size * data.draw(st.sampled_from([1, 2, 3, 5])) for size in smallest)
    plan = make_plan(shape, 4, source, destination)
    assert plan.bytes_moved == plan.lower_bound == sum(plan.bytes_per_pair.values()) == math.prod(shape) * 4
    assert len({move.piece for move in plan.moves}) == len(plan.moves) == math.prod(plan.grid)


@settings(max_examples=80, deadline=None)
@given(source=tilings(0, 2), destination=tilings(8, 2), size=st.sampled_from([24, 120]))
def test_after_the_crossing_each_device_receives_what_it_still_lacks(source, destination, size):
    plan = make_plan((size, 24), 2, source, destination)
    crossed = sum(len(cells_of_piece(plan, move.piece)) for move in plan.moves)
    wanted = sum(len(cells_of(destination, plan.shape, device)) for device in destination.devices)
    hops = {step.name: step.bytes for step in plan.hops}
    assert list(hops) == [name for name in ("slice", "cross", "broadcast", "gather") if name in hops]
    assert hops.get("broadcast", 0) + hops.get("gather", 0) == plan.bytes_gathered == 2 * (wanted - crossed)
    assert hops["cross"] == plan.bytes_moved
    assert hops.get("slice", 0) == 0


@settings(max_examples=120, deadline=None)
@given(source=tilings(0, 2, permute=True), first=st.sampled_from([0, 2, 4]), data=st.data())
def test_between_shared_devices_each_receives_just_what_it_lacks(source, first, data):
    """Counted element by element, and nothing but that is sent behind it."""
    destination = data.draw(tilings(first, 2, permute=True))
    plan = make_plan((24, 24), 4, source, destination)
    assume(not plan.disjoint)
    held = {device: cells_of(source, plan.shape, device) for device in source.devices}
    lacking = sum(
        len(cells_of(destination, plan.shape, device) - held.get(device, set())) for device in destination.devices
    )
    assert plan.bytes_moved == plan.lower_bound == sum(plan.bytes_per_pair.values()) == 4 * lacking
    assert plan.bytes_gathered == 0
    assert plan.stays == (lacking == 0 and plan.source.counts == plan.destination.counts)
    relay = ["relay"] if any(move.relay for move in plan.moves) else []
    assert [step.name for step in plan.hops] == ([] if plan.stays else ["exchange", *relay])
    assert sum(step.bytes for step in plan.hops) == plan.bytes_moved


@pytest.mark.parametrize("tensor", [2, 4])
def test_tensor_replicas_on_both_sides_share_the_links_evenly(tensor):
    """Batch over `data`, a copy on every `tensor` device: no link may carry more than a device's share."""
    data = 8 // tensor
    source, destination = (make_tiling(range(first, first + 8), (data, tensor), (0,), ()) for first in (0, 8))
    plan = make_plan((16, 8), 4, source, destination)
    nbytes = 16 * 8 * 4
    assert plan.bytes_per_pair_max == nbytes // 8
    assert len(plan.bytes_per_pair) == 8
    assert plan.bytes_gathered == nbytes * (tensor - 1)


def test_unlike_batch_shards_still_use_every_device_of_both_sides():
    """Four encoder shards into two language-model shards, twice each: 4-7 each get a quarter."""
    source, destination = make_tiling(range(4), (4,), (0,), ()), make_tiling(range(4, 8), (2, 2), (0,), ())
    plan = make_plan((32, 8), 4, source, destination)
    assert {move.source for move in plan.moves} == set(range(4))
    assert {move.destination for move in plan.moves} == set(range(4, 8))
    assert plan.bytes_per_pair_max == 32 * 8 * 4 // 4


@pytest.mark.parametrize("tensor", [2, 4])
def test_there_are_as_many_links_as_tensor_devices_for_each_leader(tensor):
    """A leader for each of four batch shards would have four links with a quarter each."""
    source = make_tiling(range(4 * tensor), (4, tensor), (0,), ())
    destination = make_tiling(range(100, 100 + 4 * tensor), (4, tensor), (0,), ())
    plan = make_plan((32, 8), 2, source, destination)
    leaders, quarter = 4, 32 * 8 * 2 // 4
    assert len(plan.bytes_per_pair) == tensor * leaders
    assert set(plan.bytes_per_pair.values()) == {plan.bytes_per_pair_max} == {quarter // tensor}


def test_a_replicated_source_sends_from_all_its_devices():
    source, destination = make_tiling(range(4), (4,), (), ()), make_tiling(range(4, 8), (4,), (0,), ())
    plan = make_plan((8, 8), 4, source, destination)
    assert len({move.source for move in plan.moves}) == 4


def test_copies_that_cannot_be_split_take_turns_to_send():
    """Six rows on four devices: no device may send more than one of the three pieces."""
    source, destination = make_tiling(range(4), (4,), ()), make_tiling(range(4, 7), (3,), (0,))
    plan = make_plan((6,), 4, source, destination)
    assert len({move.source for move in plan.moves}) == len(plan.moves) == 3


def test_same_tiling_on_the_same_devices_moves_nothing():
    source = make_tiling(range(4), (2, 2), (0,), ())
    plan = make_plan((8, 8), 4, source, make_tiling(range(4), (2, 2, 1), (0,), ()))
    assert plan.stays
    assert plan.hops == ()
    assert plan.bytes_moved == plan.lower_bound == plan.bytes_gathered == 0


def test_tiles_in_another_order_on_the_same_devices_do_not_stay():
    plan = make_plan((8,), 4, make_tiling(range(4), (2, 2), (0, 1)), make_tiling(range(4), (2, 2), (1, 0)))
    assert not plan.stays
    assert plan.bytes_moved == 2 * (8 * 4 // 4), "two of four devices keep their tile"


def test_copies_of_what_cannot_be_split_come_from_the_first_that_received_it():
    """A scalar to five devices crosses once; in the first round one hands it on, then two, then the last."""
    plan = make_plan((), 4, make_tiling(range(2), (2,)), make_tiling(range(10, 15), (5,)))
    assert plan.bytes_moved == plan.lower_bound == 4
    cross, broadcast = plan.hops
    assert (cross.name, list(cross.bytes_per_pair)) == ("cross", [(0, 10)])
    assert (broadcast.name, broadcast.where) == ("broadcast", "destination")
    assert broadcast.bytes_per_pair == {link: 4 for link in [(10, 11), (10, 12), (11, 13), (10, 14)]}


@pytest.mark.parametrize(("able", "devices"), [(1, 2), (1, 5), (3, 50), (8, 4096)])
def test_what_few_of_shared_devices_hold_reaches_all_in_as_many_rounds_as_a_tree_has_levels(able, devices):
    """Each device that has it sends once a round, so at most twice as many have it after."""
    source, destination = make_tiling(range(able), (able,), ()), make_tiling(range(devices), (devices,), ())
    plan = make_plan((6,), 4, source, destination)
    rounds = make_rounds(plan.moves)
    assert len(rounds) == math.ceil(math.log2(devices / able))
    assert plan.bytes_moved == sum(plan.bytes_per_pair.values()) == 24 * (devices - able)
    have = set(range(able))
    for turn in rounds:
        assert {sender for sender, _ in turn.moves} <= have
        have |= {receiver for _, receiver in turn.moves}
    assert have == set(range(devices))


def test_what_takes_as_long_either_way_comes_straight_from_the_source():
    """Two of a mesh of six hold it: two rounds, with or without a relay."""
    plan = make_plan((), 4, make_tiling(range(2), (2,)), make_tiling(range(6), (6,)))
    assert [step.name for step in plan.hops] == ["exchange"]
    assert len(make_rounds(plan.moves)) == 2


def test_links_of_a_gather_over_two_dims_carry_what_the_first_has_gathered():
    """Rows first, among the devices of a column; then whole rows of tiles among those of a row."""
    source, destination = make_tiling([8], (1,), (), ()), make_tiling(range(4), (2, 2), (), ())
    (gather,) = (step for step in make_plan((2, 2), 1, source, destination).hops if step.name == "gather")
    one_dim = make_plan((2, 2), 1, source, destination).destination_fine.counts
    assert one_dim == (2, 2), "neither dim divides by four"
    among_rows = {(0, 2): 1, (2, 0): 1, (1, 3): 1, (3, 1): 1}
    among_columns = {(0, 1): 2, (1, 0): 2, (2, 3): 2, (3, 2): 2}
    assert gather.bytes_per_pair == among_rows | among_columns


def test_a_plan_for_a_thousand_devices_takes_no_time():
    """A tenth of a second of computing as measured, however busy the machine."""
    rows, columns = (
        make_tiling(range(f, f + n), (n,), *s) for f, n, s in [(0, 1024, ((0,), ())), (1024, 512, ((), (0,)))]
    )
    mixed = make_tiling(range(2000, 2512), (8, 4, 4, 4), (1, 0), (3,))
    start = time.thread_time()
    for source, destination in itertools.permutations((rows, columns, mixed), 2):
        plan = make_plan((4096, 8192), 2, source, destination)
        assert plan.bytes_moved == 4096 * 8192 * 2
    shared = make_plan((4096, 8192), 2, rows, make_tiling(range(1024), (1024,), (), (0,)))
    assert shared.bytes_moved == 1023 * (4096 * 8192 * 2 // 1024)
    assert time.thread_time() - start < 2


def test_many_free_axes_and_dims_are_searched_through_quickly():
    """1296 refinements of either side, so 1.7 million pairs: a tenth of a second of computing as measured."""
    source = make_tiling(range(210), (2, 3, 5, 7), (), (), (), (), ())
    destination = make_tiling(range(210, 420), (7, 5, 3, 2), (), (), (), (), ())
    start = time.thread_time()
    plan = make_plan((210,) * 5, 2, source, destination)
    assert time.thread_time() - start < 1
    assert plan.source_fine.replication == plan.destination_fine.replication == 1
    assert plan.source_fine.counts == plan.destination_fine.counts


@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_shape_that_does_not_divide_is_refused_with_side_equation_and_fix(side):
    rows, one = make_tiling(range(3), (3,), (0,), ()), make_tiling(range(3, 4), (1,), (), ())
    pair = (rows, one) if side == "source" else (one, rows)
    with pytest.raises(BoundaryError) as caught:
        make_plan((4, 2), 4, *pair)
    assert str(caught.value) == (
        f"boundary {side}: dim 0 of shape (4, 2) is 4, not divisible into the 3 tiles of axes 0 (4 % 3 = 1); "
        "change the size or the degree"
    )


def test_an_empty_tensor_is_refused():
    with pytest.raises(BoundaryError, match=r"shape \(0, 4\) has no elements to carry"):
        make_plan((0, 4), 4, make_tiling(range(2), (2,), (0,), ()), make_tiling(range(2, 4), (2,), (0,), ()))
