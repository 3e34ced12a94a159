"""Look up embeddings by id in a table that may be split over its ids and its columns.

With the table split by `vocab`, each device looks up the ids in its part and has zeros for the others; a sum,
scattered as the residual stream is split, completes them (Shoeybi et al. 2019). Columns that are split only as
weights are gathered before, and not kept; the backward needs no table.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from hetjax.models.dims import RESIDUAL, SEQUENCE
from hetjax.models.parallel.dim_axes import DimAxes, gradient_axes, unique_axes, weight_axes
from hetjax.models.parallel.layout_in_force import splits_in_force

# B batch · S sequence · V vocabulary · D width


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingSharding:
    """The static facts of an embedding under a layout; hashable.

    Attributes:
        mesh: the devices.
        vocabulary: number of ids of the whole table, V.
        table, gradient: axes of the table [V, D] as programs hold it, and of its gradient as the optimizer does.
        result: axes of the embeddings [B, S, D].
        ids: partition of the ids [B, S].
        ids_over, parts_over: axes that split the ids, and the vocabulary of the table.
    """

    mesh: Mesh
    vocabulary: int
    table: DimAxes
    gradient: DimAxes
    result: DimAxes
    ids: PartitionSpec
    ids_over: tuple[str, ...]
    parts_over: tuple[str, ...]


def sharded_embedding(table: Float[Array, "V D"], ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    """Return table[ids] in the dtype of the table; an id outside of -V..V-1 gives NaN."""
    splits = splits_in_force()
    if splits is None or splits.weight_axes_of is None:
        return jnp.take(table, ids, axis=0)
    of_ids, parts = tuple(map(splits.axes_of, SEQUENCE)), splits.axes_of("vocab")
    names, used = ("vocab", "embed"), (parts, splits.axes_of("embed"))
    sharding = EmbeddingSharding(
        mesh=splits.mesh,
        vocabulary=table.shape[0],
        table=weight_axes(splits.weight_axes_of, names, used),
        gradient=gradient_axes(splits.gradient_axes_of(names, table.shape), used, unique_axes(of_ids)),
        result=DimAxes(stored=(*map(splits.axes_of, RESIDUAL), used[1]), used=(*of_ids, used[1])),
        ids=PartitionSpec(*(axes or None for axes in of_ids)),
        ids_over=unique_axes(of_ids),
        parts_over=parts,
    )
    ours = (
        sharding.table.can_scatter(sharding.ids_over)
        and sharding.gradient.can_scatter(sharding.ids_over)
        and sharding.result.can_scatter(parts)
    )
    return _look_up(sharding, table, ids) if ours else jnp.take(table, ids, axis=0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _look_up(sharding: EmbeddingSharding, table, ids):
    return jax.shard_map(
        partial(_forward_part, sharding),
        mesh=sharding.mesh,
        in_specs=(sharding.table.spec, sharding.ids),
        out_specs=sharding.result.spec,
        check_vma=False,
    )(table, ids)


def _forward(sharding: EmbeddingSharding, table, ids):
    return _look_up(sharding, table, ids), ids


def _backward(sharding: EmbeddingSharding, ids, gradient):
    of_table = jax.shard_map(
        partial(_backward_part, sharding),
        mesh=sharding.mesh,
        in_specs=(sharding.ids, sharding.result.spec),
        out_specs=sharding.gradient.spec,
        check_vma=False,
    )(ids, gradient)
    return of_table, None


_look_up.defvjp(_forward, _backward)


def _forward_part(sharding: EmbeddingSharding, table, ids):
    table = sharding.table.gather(table)
    ids = jnp.where(ids < 0, ids + sharding.vocabulary, ids)
    exists = (ids >= 0) & (ids < sharding.vocabulary)
    place = _place(sharding, table.shape[0], ids)
    found = table.at[place].get(mode="fill", fill_value=0)
    return sharding.result.sum(jnp.where(exists[..., None], found, jnp.nan), sharding.parts_over)


def _backward_part(sharding: EmbeddingSharding, ids, gradient):
    gradient = sharding.result.gather(gradient)
    ids = jnp.where(ids < 0, ids + sharding.vocabulary, ids)
    parts = jax.lax.axis_size(sharding.parts_over) if sharding.parts_over else 1
    count = sharding.vocabulary // parts
    place = _place(sharding, count, ids)
    of_table = jnp.zeros((count, gradient.shape[-1]), gradient.dtype).at[place].add(gradient, mode="drop")
    return sharding.gradient.sum(of_table, sharding.ids_over)


def _place(sharding: EmbeddingSharding, count: int, ids: Array) -> Array:
    """The place of each id among the `count` of this device's part of the table; `count` for ids of other parts."""
    if not sharding.parts_over:
        return jnp.where(ids < 0, count, ids)
    place = ids - jax.lax.axis_index(sharding.parts_over) * count
    return jnp.where((place >= 0) & (place < count), place, count)
