"""The bytes of a plan, link by link, against those in the programs that XLA made of it."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings

from hetjax.boundary import Transport
from hetjax.compilation.hlo import bytes_received, collectives
from tests.harness.boundary_cases import Crossing, crossings, elements_held, elements_lacking

few = settings(max_examples=25, deadline=None, derandomize=True)
many = settings(max_examples=300, deadline=None)


def text_of(transport: Transport, end: str) -> str:
    """Empty where an end has nothing to do."""
    return transport.programs[end].text if end in transport.programs else ""


def bytes_by_link(text: str, devices: list[int]) -> dict[tuple[int, int], int]:
    """What the permutations of a program send; its places are `devices` in order."""
    links = Counter()
    for collective in collectives(text):
        for source, destination in collective.pairs:
            if source != destination:
                links[devices[source], devices[destination]] += collective.result_bytes
    return dict(links)


def transport_of(crossing: Crossing, way: str | None) -> Transport:
    sides = crossing.source.sharding, crossing.destination.sharding
    return Transport(*sides, crossing.shape, crossing.dtype, way=way).compile()


def assert_programs_send_what_is_planned(crossing: Crossing) -> None:
    transport = transport_of(crossing, "exchange")
    plan = transport.plan
    nbytes = np.dtype(transport.dtype).itemsize
    whole = math.prod(crossing.shape) * nbytes
    wanted = sum(int(mask.sum()) for mask in elements_held(transport.destination, crossing.shape).values()) * nbytes
    crossed = whole if plan.disjoint else elements_lacking(crossing) * nbytes

    assert bytes_received(transport.programs["cross"].text) == plan.bytes_moved == plan.lower_bound == crossed
    everyone = sorted({*crossing.source.devices, *crossing.destination.devices})
    assert bytes_by_link(transport.programs["cross"].text, everyone) == plan.bytes_per_pair
    assert bytes_received(text_of(transport, "split")) == 0
    assert bytes_received(text_of(transport, "join")) == plan.bytes_gathered == (wanted - whole if plan.disjoint else 0)
    broadcast = {step.name: step.bytes_per_pair for step in plan.hops}.get("broadcast", {})
    assert bytes_by_link(text_of(transport, "join"), list(crossing.destination.devices)) == broadcast


def bytes_of_copies(transport: Transport) -> int:
    """Those of the pieces that `jax.device_put` is asked to take from one device to another, and of both ends."""
    takes = (pair for batch in transport.copies.batches for pair in zip(batch.sources, batch.devices, strict=True))
    pieces = sum(source != target.id for (_, source), target in takes)
    ends = text_of(transport, "split"), text_of(transport, "join")
    return pieces * transport.plan.piece_bytes + sum(map(bytes_received, ends))


def assert_default_way_sends_no_more(crossing: Crossing) -> None:
    transport = transport_of(crossing, None)
    assert not transport.plan.disjoint
    sent = {
        "stay": lambda: 0,
        "reshard": lambda: bytes_received(transport.programs["cross"].text),
        "exchange": lambda: bytes_received(transport.programs["cross"].text),
        "copies": lambda: bytes_of_copies(transport),
    }[transport.way]()
    assert sent == elements_lacking(crossing) * np.dtype(transport.dtype).itemsize


@few
@given(crossings())
def test_programs_send_what_is_planned_on_every_link(crossing):
    assert_programs_send_what_is_planned(crossing)


@few
@given(crossings(places=("same", "permuted", "overlapping")))
def test_on_shared_devices_the_default_way_sends_just_what_is_lacking(crossing):
    assume(set(crossing.source.devices) & set(crossing.destination.devices))
    assert_default_way_sends_no_more(crossing)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.timeout(1200)
@many
@given(crossings())
def test_many_programs_send_what_is_planned(crossing):
    assert_programs_send_what_is_planned(crossing)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(1200)
@many
@given(crossings(places=("same", "permuted", "overlapping")))
def test_many_default_ways_on_shared_devices_send_just_what_is_lacking(crossing):
    assume(set(crossing.source.devices) & set(crossing.destination.devices))
    assert_default_way_sends_no_more(crossing)
