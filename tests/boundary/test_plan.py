import collections
import itertools
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hetjax.boundary import Tiling, make_plan
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
    arrived = collections.defaultdict(list)
    for move in plan.moves:
        piece = cells_of_piece(plan, move.piece)
        assert piece <= cells_of(plan.source_fine, plan.shape, move.source)
        if move.destination in plan.source.devices and move.source != move.destination:
            assert not piece <= cells_of(plan.source_fine, plan.shape, move.destination)
        assert piece <= cells_of(plan.destination_fine, plan.shape, move.destination)
        assert move.source_slot == row_major_slot(plan, plan.source_fine, move.piece)
        assert move.destination_slot == row_major_slot(plan, plan.destination_fine, move.piece)
        arrived[move.destination].append(piece)
    for device in plan.destination.devices:
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
    plan = make_plan((24, 24), 4, source, destination)
    if not plan.in_one_program:
        assert_pieces_arrive(plan)


@settings(max_examples=150, deadline=None)
@given(source=tilings(0, 2), destination=tilings(8, 2))
def test_disjoint_meshes_move_each_byte_once(source, destination):
    """24 divides by every number of tiles that these meshes make, so that replicas can always share the work."""
    plan = make_plan((24, 24), 4, source, destination)
    assert plan.bytes_moved == plan.lower_bound == 24 * 24 * 4
    assert len({move.piece for move in plan.moves}) == len(plan.moves) == math.prod(plan.grid)


@settings(max_examples=80, deadline=None)
@given(source=tilings(0, 2), destination=tilings(8, 2))
def test_gathered_bytes_are_what_the_destination_lacks_after_the_crossing(source, destination):
    plan = make_plan((24, 24), 2, source, destination)
    lacking = sum(
        len(cells_of(destination, plan.shape, device) - cells_of(plan.destination_fine, plan.shape, device))
        for device in destination.devices
    )
    assert plan.bytes_gathered == 2 * lacking


@settings(max_examples=100, deadline=None)
@given(source=tilings(0, 2, permute=True), destination=tilings(4, 2, permute=True))
def test_on_overlapping_meshes_a_device_sends_itself_nothing(source, destination):
    """Counted element by element: what crosses is what each device does not hold of its finer tile, at most."""
    plan = make_plan((24, 24), 1, source, destination)
    sent = sum(len(cells_of_piece(plan, move.piece)) for move in plan.moves if move.source != move.destination)
    if not plan.in_one_program:
        assert plan.bytes_moved == sent
    assert plan.bytes_moved >= plan.lower_bound
    shared = set(source.devices) & set(destination.devices)
    held = set().union(*(cells_of(source, plan.shape, device) for device in shared))
    if not plan.in_one_program:
        assert plan.lower_bound == 24 * 24 - len(held)


@settings(max_examples=60, deadline=None)
@given(source=tilings(0, 2, meshes=[(4,), (2, 2)]), destination=tilings(0, 2, meshes=[(4,), (2, 2)]))
def test_in_one_program_a_device_receives_only_what_it_lacks(source, destination):
    plan = make_plan((24, 24), 4, source, destination)
    assume(plan.in_one_program)
    lacking = sum(len(cells_of(destination, (24, 24), d) - cells_of(source, (24, 24), d)) for d in range(4))
    assert plan.bytes_moved == plan.lower_bound == 4 * lacking


@pytest.mark.parametrize("tensor", [2, 4])
def test_tensor_replicas_on_both_sides_share_the_links_evenly(tensor):
    """Batch over `data`, a copy on every `tensor` device: no link may carry more than a device's share."""
    data = 8 // tensor
    source, destination = (make_tiling(range(first, first + 8), (data, tensor), (0,), ()) for first in (0, 8))
    plan = make_plan((16, 8), 4, source, destination)
    nbytes = 16 * 8 * 4
    assert plan.bytes_per_link_max == nbytes // 8
    assert len(plan.bytes_per_link) == 8
    assert plan.bytes_gathered == nbytes * (tensor - 1)


def test_unlike_batch_shards_still_use_every_device_of_both_sides():
    """Four encoder shards into two language-model shards, twice each: 4-7 each get a quarter."""
    source, destination = make_tiling(range(4), (4,), (0,), ()), make_tiling(range(4, 8), (2, 2), (0,), ())
    plan = make_plan((32, 8), 4, source, destination)
    assert {move.source for move in plan.moves} == set(range(4))
    assert {move.destination for move in plan.moves} == set(range(4, 8))
    assert plan.bytes_per_link_max == 32 * 8 * 4 // 4


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
    assert plan.in_one_program
    assert plan.bytes_moved == plan.lower_bound == plan.bytes_gathered == 0


def test_tiles_in_another_order_on_the_same_devices_do_not_stay():
    plan = make_plan((8,), 4, make_tiling(range(4), (2, 2), (0, 1)), make_tiling(range(4), (2, 2), (1, 0)))
    assert not plan.stays
    assert plan.bytes_moved == 2 * (8 * 4 // 4), "two of four devices keep their tile"


def test_replicas_that_cannot_be_split_receive_a_copy_each():
    """A scalar to three devices: the only case in which a byte crosses more than once."""
    plan = make_plan((), 4, make_tiling(range(2), (2,)), make_tiling(range(2, 5), (3,)))
    assert plan.lower_bound == 4
    assert plan.bytes_moved == 3 * 4


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
