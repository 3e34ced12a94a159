"""Rows of a table by id, where the table may be split over its rows and its columns.

With the table split by `vocab`, each device looks up the ids in its part and has zeros for the others; a sum,
scattered to the rows of the residual stream, completes them (Shoeybi et al. 2019). Columns that are split only as
weights are gathered before, and not kept; the backward needs no table.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from hetjax.models.dims import RESIDUAL, ROWS, splits_in_force
from hetjax.models.parallel.dim_axes import Held, flat, held_in

# B batch · S sequence · V vocabulary · D width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Who holds what; hashable, for it is static.

    Attributes:
        mesh: the devices.
        vocabulary: ids of the whole table.
        table, gradient: the table [V, D] as programs hold it, and its gradient as the optimizer does.
        result: the rows [B, S, D].
        ids: the ids [B, S].
        ids_over, parts_over: axes that split the ids, and the rows of the table.
    """

    mesh: Mesh
    vocabulary: int
    table: Held
    gradient: Held
    result: Held
    ids: PartitionSpec
    ids_over: tuple[str, ...]
    parts_over: tuple[str, ...]


def look_up(table: Float[Array, "V D"], ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    """table[ids]; an id outside of -V..V-1 gives NaN."""
    splits = splits_in_force()
    if splits is None or splits.weight_axes_of is None:
        return jnp.take(table, ids, axis=0)
    rows, parts = tuple(map(splits.axes_of, ROWS)), splits.axes_of("vocab")
    names, used = ("vocab", "embed"), (parts, splits.axes_of("embed"))
    plan = Plan(
        mesh=splits.mesh,
        vocabulary=table.shape[0],
        table=held_in(splits.weight_axes_of, names, used),
        gradient=held_in(splits.gradient_axes_of, names, used),
        result=Held(stored=(*map(splits.axes_of, RESIDUAL), used[1]), used=(*rows, used[1])),
        ids=PartitionSpec(*(axes or None for axes in rows)),
        ids_over=flat(rows),
        parts_over=parts,
    )
    ours = (
        plan.table.is_summed_over(plan.ids_over)
        and plan.gradient.is_summed_over(plan.ids_over)
        and plan.result.is_summed_over(parts)
    )
    return _look_up(plan, table, ids) if ours else jnp.take(table, ids, axis=0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _look_up(plan: Plan, table, ids):
    return jax.shard_map(
        partial(_forward_part, plan),
        mesh=plan.mesh,
        in_specs=(plan.table.spec, plan.ids),
        out_specs=plan.result.spec,
        check_vma=False,
    )(table, ids)


def _forward(plan: Plan, table, ids):
    return _look_up(plan, table, ids), ids


def _backward(plan: Plan, ids, gradient):
    of_table = jax.shard_map(
        partial(_backward_part, plan),
        mesh=plan.mesh,
        in_specs=(plan.ids, plan.result.spec),
        out_specs=plan.gradient.spec,
        check_vma=False,
    )(ids, gradient)
    return of_table, None


_look_up.defvjp(_forward, _backward)


def _forward_part(plan: Plan, table, ids):
    table = plan.table.gather(table)
    ids = jnp.where(ids < 0, ids + plan.vocabulary, ids)
    exists = (ids >= 0) & (ids < plan.vocabulary)
    place = _place(plan, table.shape[0], ids)
    here = table.at[place].get(mode="fill", fill_value=0)
    return plan.result.sum(jnp.where(exists[..., None], here, jnp.nan), plan.parts_over)


def _backward_part(plan: Plan, ids, gradient):
    gradient = plan.result.gather(gradient)
    ids = jnp.where(ids < 0, ids + plan.vocabulary, ids)
    parts = jax.lax.axis_size(plan.parts_over) if plan.parts_over else 1
    rows = plan.vocabulary // parts
    place = _place(plan, rows, ids)
    of_table = jnp.zeros((rows, gradient.shape[-1]), gradient.dtype).at[place].add(gradient, mode="drop")
    return plan.gradient.sum(of_table, plan.ids_over)


def _place(plan: Plan, rows: int, ids: Array) -> Array:
    """The row of each id in this device's part of the table, and one past its end for ids of other parts."""
    if not plan.parts_over:
        return jnp.where(ids < 0, rows, ids)
    place = ids - jax.lax.axis_index(plan.parts_over) * rows
    return jnp.where((place >= 0) & (place < rows), place, rows)
