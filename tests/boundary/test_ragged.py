"""Ragged boundaries against plain indexing: tokens to their slots, gradients home, and the bytes of both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hetjax.boundary import tiling_of
from hetjax.boundary.ragged import RaggedTransport, inverse_routes, make_tables
from hetjax.boundary.ragged.places import make_places
from hetjax.compilation.hlo import bytes_received
from hetjax.errors import BoundaryError

SOURCE, DESTINATION = (8, 6, 12), (4, 8, 12)

# Devices, sizes of the mesh (data, context, tensor) of either side; the batch rides on data, slots on context.
SIDES = {
    "fan in": ((range(4), (4, 1, 1)), (range(4, 6), (2, 1, 1))),
    "fan out": ((range(2), (2, 1, 1)), (range(2, 8), (2, 1, 3))),
    "disjoint, copies on both sides": ((range(4), (2, 1, 2)), (range(4, 8), (1, 1, 4))),
    "context on both sides": ((range(4), (2, 2, 1)), (range(4, 8), (2, 2, 1))),
    "context of the destination": ((range(3, 4), (1, 1, 1)), (range(4, 8), (2, 2, 1))),
    "colocated": ((range(8), (8, 1, 1)), (range(8), (2, 1, 4))),
    "colocated in another order": ((range(8), (2, 2, 2)), ((3, 2, 1, 0, 7, 6, 5, 4), (4, 2, 1))),
    "overlapping": ((range(4), (2, 1, 2)), (range(2, 8), (2, 1, 3))),
}


def sharding(side) -> NamedSharding:
    devices, sizes = side
    mesh = Mesh(np.array([jax.devices()[i] for i in devices]).reshape(sizes), ("data", "context", "tensor"))
    return NamedSharding(mesh, PartitionSpec("data", "context"))


def random_routes(seed: int = 0, count: int = 20) -> np.ndarray:
    random = np.random.default_rng(seed)
    slots, tokens = DESTINATION[0] * DESTINATION[1], SOURCE[0] * SOURCE[1]
    routes = np.full(slots, -1, np.int32)
    routes[random.choice(slots, count, replace=False)] = random.choice(tokens, count, replace=False)
    return routes.reshape(DESTINATION[:2])


def routed(x: np.ndarray, routes: np.ndarray) -> np.ndarray:
    """What arrives, by plain indexing."""
    tokens = x.reshape(-1, *x.shape[2:])[routes]
    return np.where((routes >= 0).reshape(*routes.shape, *[1] * (x.ndim - 2)), tokens, 0)


@pytest.mark.parametrize("name", SIDES)
def test_tokens_arrive_in_their_slots_and_gradients_come_home(name):
    source, destination = map(sharding, SIDES[name])
    transport = RaggedTransport(source, destination, SOURCE, DESTINATION, jnp.float32)
    routes, random = random_routes(), np.random.default_rng(1)
    tables, _ = transport.place(routes)
    x = random.normal(size=SOURCE).astype(np.float32)
    arrived = transport.forward(jax.device_put(x, source), tables["forward"])
    np.testing.assert_array_equal(arrived, routed(x, routes))
    assert arrived.sharding == destination
    gradient = random.normal(size=DESTINATION).astype(np.float32)
    returned = transport.backward(jax.device_put(gradient, destination), tables["backward"])
    home = np.zeros(SOURCE, np.float32)
    home.reshape(-1, SOURCE[2])[routes[routes >= 0]] = gradient[routes >= 0]
    np.testing.assert_array_equal(returned, home)
    assert returned.sharding == source


@pytest.mark.parametrize("name", ["colocated in another order", "disjoint, copies on both sides"])
def test_indices_arrive_with_a_number_added_in_every_slot(name):
    source, destination = map(sharding, SIDES[name])
    transport = RaggedTransport(
        source, destination, SOURCE[:2], DESTINATION[:2], jnp.int32, gradient=False, shifted=True
    )
    x = np.arange(SOURCE[0] * SOURCE[1], dtype=np.int32).reshape(SOURCE[:2])
    routes, shift = random_routes(), np.arange(32, dtype=np.int32).reshape(DESTINATION[:2])
    tables, _ = transport.place(routes, shift)
    arrived = transport.forward(jax.device_put(x, source), tables["forward"])
    np.testing.assert_array_equal(arrived, routed(x, routes) + shift)


def exchange_on_the_host(places, tables, x: np.ndarray) -> tuple[dict[int, np.ndarray], int]:
    """What `ragged_all_to_all` and the tables make, by place of a device; and how many units it sends.

    A stand-in for the collective that CPUs lack: each device's units for another lie behind those for the one before,
    and arrive behind those of the device before."""
    tiles, width = {}, places.width // places.lanes
    for tile, devices in places.source_fine.holders.items():
        part = x
        for dim, (place, count) in enumerate(zip(tile, places.source_fine.counts, strict=True)):
            part = np.split(part, count, axis=dim)[place]
        tiles |= {places.devices.index(device): part.reshape(-1, width) for device in devices}
    starts = np.cumsum(tables.counts, axis=1) - tables.counts
    arrived, sent = {}, 0
    for here in range(len(places.devices)):
        pieces = [np.zeros((0, width), x.dtype)]
        for there, size in enumerate(tables.counts[:, here]):
            if size:
                first = starts[there, here]
                pieces.append(tiles[there][tables.sent[there, first : first + size]])
                sent += size
        taken = tables.taken[here]
        pool = np.concatenate([*pieces, tiles.get(here, np.zeros((0, width), x.dtype)), np.zeros((1, width), x.dtype)])
        received = sum(map(len, pieces))
        number = np.where(taken >= 0, taken, np.where(taken == -1, len(pool) - 1, received - 2 - taken))
        arrived[here] = pool[number]
    return arrived, int(sent)


@pytest.mark.parametrize("name", SIDES)
def test_what_must_move_is_all_that_a_ragged_exchange_sends(name):
    source, destination = map(sharding, SIDES[name])
    places = make_places(SOURCE, DESTINATION, 4, tiling_of(source, 3), tiling_of(destination, 3))
    routes, x = random_routes(), np.random.default_rng(1).normal(size=SOURCE).astype(np.float32)
    tables, traffic = make_tables(places, routes)
    arrived, sent = exchange_on_the_host(places, tables, x)
    wanted = routed(x, routes)
    lacking = 0
    for tile, devices in places.destination_fine.holders.items():
        part = wanted
        for dim, (place, count) in enumerate(zip(tile, places.destination_fine.counts, strict=True)):
            part = np.split(part, count, axis=dim)[place]
        for device in devices:
            np.testing.assert_array_equal(arrived[places.devices.index(device)].reshape(part.shape), part)
    # Independent of the tables: what each device is to hold of every token, less what it holds already.
    held = {device: index for device, index in source.devices_indices_map(SOURCE).items()}
    fine = NamedSharding(destination.mesh, places.destination_fine.partition_spec)
    for device, index in fine.devices_indices_map(DESTINATION).items():
        mine = np.zeros(SOURCE, bool)
        if device in held:
            mine[held[device]] = True
        use = np.zeros(DESTINATION, bool)
        use[index] = True
        lacking += int((use & (routes >= 0)[..., None] & ~routed(mine, routes)).sum())
    assert sent * places.unit_bytes == traffic.needed == 4 * lacking


def test_queues_are_all_that_the_dense_program_sends():
    source, destination = map(sharding, SIDES["fan in"])
    transport = RaggedTransport(source, destination, SOURCE, DESTINATION, jnp.float32).compile()
    way = transport.forward
    # Of its own queue a device sends nothing.
    assert bytes_received(way.programs["cross"].text) == way.exchange.bytes_sent


def test_a_token_goes_to_one_slot():
    routes = np.array([[0, 3], [3, -1]], np.int32)
    with pytest.raises(BoundaryError, match="token 3 goes to several slots"):
        inverse_routes(routes, (2, 2))
    with pytest.raises(BoundaryError, match="token 9 is asked for, but"):
        inverse_routes(np.array([[9]], np.int32), (2, 2))


def test_tokens_of_another_width_are_refused():
    source, destination = map(sharding, SIDES["fan in"])
    with pytest.raises(BoundaryError, match="one width on both sides"):
        RaggedTransport(source, destination, SOURCE, (4, 8, 16), jnp.float32)
