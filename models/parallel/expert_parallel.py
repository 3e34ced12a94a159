"""The experts of a layer over many devices: tokens go to the experts and come back.

Where the layout in force splits the dim "experts", each device has some of the experts, sends its tokens to
the devices whose experts they ask for, and gets the results back (`hetjax.models.parallel.token_exchange`): rows of D
values travel twice in the forward pass and twice in the backward pass. No weight travels. Where "mlp" is split too,
each device computes a part of every expert's hidden values, and the results are summed once they are back.

Forward and backward are one `shard_map` each; the backward keeps what the experts got and what their
first products gave.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from hetjax.models.dims import splits_in_force
from hetjax.models.errors import LayoutError
from hetjax.models.kernels.grouped_experts import Activation, Kernels, Slots, run_experts, run_experts_backward
from hetjax.models.parallel.dim_axes import Held
from hetjax.models.parallel.token_exchange import Peers, Sending, plan_sending, swap, swap_used

# B batch · S sequence · D width · F hidden width of an expert · E experts · K experts chosen by a token
# On one device: T tokens · N peers · P places for one peer's rows · R = N·P rows to compute · M slots of these


def mix_experts(
    x: Float[Array, "B S D"],
    experts: Int[Array, "B S K"],
    weights: Float[Array, "B S K"],
    kernels: Kernels,
    activation: Activation,
    capacity: int | None = None,
) -> Float[Array, "B S D"]:
    """The sum of weights[.., k] * expert experts[.., k] (x) over k; number E stands for no expert.

    `capacity` promises that no expert is asked for by more rows of a sequence. Raises LayoutError where the layout
    in force does not fit.
    """
    return _mix(_form(kernels.down.shape[0], activation, capacity), x, experts, weights, kernels)


# ── how the experts are shared out ───────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Form:
    """How tokens meet experts; hashable, for it is static.

    Attributes:
        mesh: the devices; None for one device, or where the compiler is to choose.
        batch, seq, experts, mlp: the axes that split each dim.
        embed: those that split it in the gradients of kernels, as the optimizer holds them.
        count: experts, of all devices together.
        activation, capacity: as `mix_experts` takes them.
    """

    mesh: Mesh | None
    batch: tuple[str, ...] = ()
    seq: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()
    mlp: tuple[str, ...] = ()
    embed: tuple[str, ...] = ()
    count: int
    activation: Activation
    capacity: int | None

    @property
    def peers(self) -> int:
        """Devices that share out the experts, N."""
        return math.prod(self.mesh.shape[axis] for axis in self.experts) if self.experts else 1

    @property
    def rows(self) -> PartitionSpec:
        """[B, S, ...]."""
        return PartitionSpec(self.batch or None, self.seq or None)

    @property
    def of_devices(self) -> PartitionSpec:
        """Arrays of each device's own, stacked along their first dim."""
        return PartitionSpec((*self.batch, *self.seq) or None)

    @property
    def first(self) -> PartitionSpec:
        """[M, F], M of each device's own."""
        return PartitionSpec(*self.of_devices, self.mlp or None)

    def kernels(self, first: int) -> Kernels:
        """The partition of each kernel; there are so many `first` ones."""
        experts, mlp = self.experts or None, self.mlp or None
        return Kernels((PartitionSpec(experts, None, mlp),) * first, PartitionSpec(experts, mlp, None))

    @property
    def gradients(self) -> tuple[Held, Held]:
        """Who holds the gradient of one of the first kernels [E, D, F], and of the last [E, F, D]."""
        first = Held(stored=(self.experts, self.embed, self.mlp), used=(self.experts, (), self.mlp))
        last = Held(stored=(self.experts, self.mlp, self.embed), used=(self.experts, self.mlp, ()))
        return first, last

    def places(self, batch: int, tokens: int) -> int:
        """Rows of so many own tokens that one peer needs at most, P: each once, whatever it asks for."""
        return tokens if self.capacity is None else min(tokens, batch * self.capacity * self.count // self.peers)

    def most_slots(self, batch: int, rows: int, top_k: int) -> int:
        """Slots that the rows of all peers, each with `batch` sequences, can fill here, M."""
        local = self.count // self.peers
        most = rows * min(top_k, local)
        return most if self.capacity is None else min(most, self.peers * batch * self.capacity * local)


def _form(count: int, activation: Activation, capacity: int | None) -> _Form:
    splits, kind = splits_in_force(), dict(count=count, activation=activation, capacity=capacity)
    if splits is None:
        return _Form(mesh=None, **kind)
    axes = {dim: splits.axes_of(dim) for dim in ("batch", "seq", "experts", "mlp")}
    embed = splits.gradient_axes_of("embed") if splits.gradient_axes_of else ()
    # Scattered to the parts of the optimizer where they are parts of a sum over what does not split experts.
    summed = {*axes["batch"], *axes["seq"]} - {*axes["experts"]}
    form = _Form(mesh=splits.mesh, embed=embed if summed.issuperset(embed) else (), **axes, **kind)
    names = "*".join(form.experts)
    if form.count % form.peers:
        raise LayoutError(
            f"experts % {names} = {form.count} % {form.peers} = {form.count % form.peers} must be 0; "
            "change either of the two"
        )
    if not set(form.experts) <= {*form.batch, *form.seq}:
        raise LayoutError(
            f"experts ride on {names}, which splits neither batch ({'*'.join(form.batch) or 'whole'}) nor seq "
            f"({'*'.join(form.seq) or 'whole'}), so that devices with unlike experts have the same tokens; put experts "
            "on the axis 'expert'"
        )
    return form


# ── forward and backward, each one `shard_map` ───────────────────────────────────────────────────────


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(form: _Form, x, experts, weights, kernels):
    return _forward(form, x, experts, weights, kernels)[0]


def _forward(form: _Form, x, experts, weights, kernels):
    y, kept = _on_devices(
        form,
        partial(_forward_part, form),
        (form.rows, form.rows, form.rows, form.kernels(len(kernels.first))),
        (form.rows, _kept_specs(form, len(kernels.first))),
    )(x, experts, weights, kernels)
    # What is not sent is the very input, of which the backward needs no other copy.
    return y, (kept, experts, kernels, (x, weights) if form.peers == 1 else None)


def _backward(form: _Form, residuals, gradient):
    kept, experts, kernels, own = residuals
    specs = form.kernels(len(kernels.first))
    dx, d_weights, d_kernels = _on_devices(
        form,
        partial(_backward_part, form),
        (_kept_specs(form, len(kernels.first)), form.rows, specs, None if own is None else form.rows, form.rows),
        (form.rows, form.rows, Kernels((form.gradients[0].spec,) * len(kernels.first), form.gradients[1].spec)),
    )(kept, experts, kernels, own, gradient)
    return dx, None, d_weights, d_kernels


_mix.defvjp(_forward, _backward)


def _on_devices(form: _Form, function: Any, ins: Any, outs: Any) -> Any:
    if form.mesh is None:
        return function
    return jax.shard_map(function, mesh=form.mesh, in_specs=ins, out_specs=outs, check_vma=False)


def _kept_specs(form: _Form, first: int) -> Any:
    arrived = None if form.peers == 1 else (form.of_devices, Slots(form.of_devices, form.of_devices))
    return (form.first,) * first, arrived


def _forward_part(form: _Form, x, experts, weights, kernels: Kernels):
    """(y [B, S, D], (what the first products gave, (rows [R, D], slots [R, K]) that arrived or None))."""
    batch, top_k = x.shape[0], experts.shape[-1]
    rows, slots = _flat(x), Slots(_flat(experts), _flat(weights))
    if form.peers == 1:
        most = form.most_slots(batch, rows.shape[0], top_k)
        y, first = run_experts(kernels, rows, slots, form.activation, most)
        return _sum_of_parts(form, y).reshape(x.shape), (first, None)
    peers, sending = _sending(form, batch, slots.experts)
    experts_there = swap(_numbers_there(form, sending, slots.experts), peers)
    arrived_slots = Slots(_flat(experts_there), _flat(swap(sending.pack(slots.weights), peers)))
    sizes = sending.sizes, _arrived_sizes(form, experts_there)
    arrived = _flat(swap_used(sending.pack(rows), peers, *sizes))
    most = form.most_slots(batch, arrived.shape[0], top_k)
    computed, first = run_experts(kernels, arrived, arrived_slots, form.activation, most)
    returned = swap_used(_of_places(computed, peers), peers, *sizes[::-1])
    return _sum_of_parts(form, sending.unpack(returned)).reshape(x.shape), (first, (arrived, arrived_slots))


def _backward_part(form: _Form, kept, experts, kernels: Kernels, own, gradient):
    """Gradients of x, weights and kernels."""
    first, arrived = kept
    batch, top_k, shape = gradient.shape[0], experts.shape[-1], gradient.shape
    gradient = _flat(gradient)
    if form.peers == 1:
        x, weights = own
        rows, slots = _flat(x), Slots(_flat(experts), _flat(weights))
        most = form.most_slots(batch, rows.shape[0], top_k)
        d_kernels, dx, d_weights = run_experts_backward(kernels, rows, slots, first, gradient, form.activation, most)
    else:
        rows, slots = arrived
        peers, sending = _sending(form, batch, _flat(experts))
        sizes = sending.sizes, _arrived_sizes(form, _of_places(slots.experts, peers))
        sent = _flat(swap_used(sending.pack(gradient), peers, *sizes))
        most = form.most_slots(batch, rows.shape[0], top_k)
        d_kernels, d_rows, d_slots = run_experts_backward(kernels, rows, slots, first, sent, form.activation, most)
        dx = sending.unpack(swap_used(_of_places(d_rows, peers), peers, *sizes[::-1]))
        d_weights = sending.unpack(swap(_of_places(d_slots, peers), peers))
    copies = tuple(axis for axis in (*form.batch, *form.seq) if axis not in form.experts)
    of_first, of_last = form.gradients
    d_kernels = Kernels(
        tuple(of_first.sum(gradient, copies) for gradient in d_kernels.first), of_last.sum(d_kernels.down, copies)
    )
    dx, d_weights = _sum_of_parts(form, dx), _sum_of_parts(form, d_weights)
    return dx.reshape(shape), d_weights.reshape(experts.shape), d_kernels


def _sending(form: _Form, batch: int, experts: Int[Array, "T K"]) -> tuple[Peers, Sending]:
    peers = Peers(axes=form.experts, count=form.peers, places=form.places(batch, experts.shape[0]))
    owners = experts // (form.count // form.peers)
    return peers, plan_sending((owners[..., None] == jnp.arange(form.peers)).any(axis=1), peers)


def _numbers_there(form: _Form, sending: Sending, experts: Int[Array, "T K"]) -> Int[Array, "N P K"]:
    """What each place asks for, as the peer numbers its experts: 0..E/N-1, and E/N for those of others and for none."""
    local = form.count // form.peers
    numbers = sending.pack(experts, form.count) - local * jnp.arange(form.peers, dtype=experts.dtype)[:, None, None]
    return jnp.where((numbers >= 0) & (numbers < local), numbers, local)


def _arrived_sizes(form: _Form, experts_there: Int[Array, "N P K"]) -> Int[Array, " N"]:
    """Rows that came from each peer: every one of them asks for an expert here."""
    return (experts_there < form.count // form.peers).any(axis=2).sum(axis=1, dtype=jnp.int32)


def _sum_of_parts(form: _Form, x: Array) -> Array:
    return jax.lax.psum(x, form.mlp) if form.mlp else x


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _of_places(x: Float[Array, "R D"], peers: Peers) -> Float[Array, "N P D"]:
    return x.reshape(peers.count, peers.places, -1)
