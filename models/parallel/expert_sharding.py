"""Find how a layout in force splits a mixture of experts: axes of each dim, partition of each array, and capacities."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from hetjax.models.errors import LayoutError
from hetjax.models.kernels.checks import HOPPER_EXPERTS
from hetjax.models.kernels.grouped_experts import Activation, ExpertKernels
from hetjax.models.kernels.grouped_products import GroupedProducts, Method, choose_method
from hetjax.models.parallel.dim_axes import DimAxes, gradient_axes
from hetjax.models.parallel.layout_in_force import Axes, device_in_force, is_replaced, splits_in_force
from hetjax.models.parallel.token_exchange import Buffers
from hetjax.models.parallel.token_peers import Peers
from hetjax.models.parallel.token_rounds import Rooms, rooms

# B batch · S sequence · D width · F hidden width of an expert · E experts · N peers, the devices that share them out
# T own tokens · K experts chosen by a token


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """The static facts of a round: sizes of its buffers, and the products of what fits into them."""

    buffers: Buffers
    products: GroupedProducts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounds:
    """The first round and the further ones, if there may be any; and the room that settles which a token is in."""

    room: Rooms
    first: Round
    further: Round | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertSharding:
    """The static facts of a mixture of experts under a layout; hashable.

    Attributes:
        mesh: the devices; None for one device, or where the compiler is to choose.
        batch, seq, experts, mlp: the axes that split each dim.
        embed: those that split it in the gradients of kernels, as the optimizer holds them.
        count: number of experts, E, of all devices together.
        activation, capacity, margin: as `hetjax.models.parallel.expert_parallel` takes them.
        method: how products are computed.
        ragged: whether devices like these exchange as many tokens as there are.
    """

    mesh: Mesh | None
    batch: Axes = ()
    seq: Axes = ()
    experts: Axes = ()
    mlp: Axes = ()
    embed: Axes = ()
    count: int
    activation: Activation
    capacity: int | None
    margin: float
    method: Method
    ragged: bool

    @property
    def peers(self) -> int:
        """Number of devices that share out the experts, N."""
        return math.prod(self.mesh.shape[axis] for axis in self.experts) if self.experts else 1

    @property
    def local(self) -> int:
        """Number of experts of one device, E/N."""
        return self.count // self.peers

    @property
    def tokens(self) -> PartitionSpec:
        """The partition of arrays [B, S, ...]."""
        return PartitionSpec(self.batch or None, self.seq or None)

    @property
    def of_devices(self) -> PartitionSpec:
        """The partition of arrays that each device has of its own, stacked along their first dim."""
        return PartitionSpec((*self.batch, *self.seq) or None)

    @property
    def first(self) -> PartitionSpec:
        """The partition of the first products [M, F], with M of each device's own."""
        return PartitionSpec(*self.of_devices, self.mlp or None)

    def kernels(self, first: int) -> ExpertKernels:
        """Return the partition of each kernel, where `first` kernels come before the last one."""
        experts, mlp = self.experts or None, self.mlp or None
        return ExpertKernels((PartitionSpec(experts, None, mlp),) * first, PartitionSpec(experts, mlp, None))

    @property
    def gradients(self) -> tuple[DimAxes, DimAxes]:
        """The axes of the gradient of one of the first kernels [E, D, F], and of that of the last [E, F, D]."""
        first = DimAxes(stored=(self.experts, self.embed, self.mlp), used=(self.experts, (), self.mlp))
        last = DimAxes(stored=(self.experts, self.mlp, self.embed), used=(self.experts, self.mlp, ()))
        return first, last

    @property
    def neighbours(self) -> Peers:
        """The devices that share out the experts."""
        return Peers(axes=self.experts, count=self.peers, ragged=self.ragged)

    def products(self, rows: int) -> GroupedProducts:
        """Return the products of so many slots at most with the experts of one device."""
        return GroupedProducts(method=self.method, count=self.local, rows=rows)

    def most_slots(self, batch: int, tokens: int, top_k: int) -> int:
        """Return the most slots that so many tokens, of `batch` sequences, fill at one peer."""
        most = tokens * min(top_k, self.local)
        return most if self.capacity is None else min(most, batch * self.capacity * self.local)

    def rounds(self, batch: int, tokens: int, top_k: int) -> Rounds:
        """Return the rounds in which so many own tokens, of `batch` sequences, are exchanged with the peers."""
        # Of each device for each peer, or of all devices for each peer.
        worst, usual = self.most_slots(batch, tokens, top_k), tokens * top_k / self.peers
        queues = self.peers if self.ragged else 1
        room = rooms(
            usual * queues,
            worst * queues,
            min(top_k, self.local),
            self.margin,
            devices=1 if self.ragged else self.peers,
        )

        def sized(slots: int) -> Round:
            # A token counts once at a peer, whatever it asks for there.
            at_peer = min(slots, tokens, worst)
            if self.ragged:
                buffers = Buffers(
                    min(tokens * min(top_k, self.peers), self.peers * at_peer), min(slots, self.peers * at_peer)
                )
                return Round(buffers=buffers, products=self.products(slots))
            buffers = Buffers(self.peers * at_peer, self.peers * at_peer)
            return Round(buffers=buffers, products=self.products(self.peers * slots))

        return Rounds(room=room, first=sized(room.first), further=sized(room.further) if room.further else None)


def expert_sharding(
    count: int, width: int, dtype: jnp.dtype, activation: Activation, capacity: int | None, margin: float
) -> ExpertSharding:
    """Return how the layout in force splits `count` experts from and to tokens of a width and dtype.

    Raises LayoutError where the experts do not divide over devices, or devices with other experts have equal tokens.
    """
    splits, device = splits_in_force(), device_in_force()
    method = choose_method(dtype, width, device)
    kind = dict(
        count=count,
        activation=activation,
        capacity=capacity,
        margin=margin,
        method="blocks" if method == "hopper" and is_replaced(HOPPER_EXPERTS) else method,
        ragged=device.platform != "cpu",
    )
    if splits is None:
        return ExpertSharding(mesh=None, **kind)
    axes = {dim: splits.axes_of(dim) for dim in ("batch", "seq", "experts", "mlp")}
    held = splits.gradient_axes_of(("experts", "embed"), (count, width))[1] if splits.gradient_axes_of else ()
    # Gradients are sums over what does not split experts, scattered as far as the optimizer's parts are split by that.
    summed = tuple({*axes["batch"], *axes["seq"]} - {*axes["experts"]})
    (embed,) = gradient_axes((held,), ((),), summed).stored
    sharding = ExpertSharding(mesh=splits.mesh, embed=embed, **axes, **kind)
    names = "*".join(sharding.experts)
    if sharding.count % sharding.peers:
        raise LayoutError(
            f"experts % {names} = {sharding.count} % {sharding.peers} = {sharding.count % sharding.peers} must be 0; "
            "change either of the two"
        )
    if not set(sharding.experts) <= {*sharding.batch, *sharding.seq}:
        raise LayoutError(
            f"experts ride on {names}, which splits neither batch ({'*'.join(sharding.batch) or 'whole'}) nor seq "
            f"({'*'.join(sharding.seq) or 'whole'}), so that devices with unlike experts have the same tokens; put "
            "experts on the axis 'expert'"
        )
    return sharding
