"""Checks a batch on the host, and places every microbatch of it on the stages that take it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Int

from hetjax.errors import BatchError
from hetjax.meshes import BATCH_AXES
from hetjax.stages.flat_state import Arrays, Shapes
from hetjax.stages.input_values import check_values
from hetjax.stages.links import Link
from hetjax.stages.row_subset import RowSubset
from hetjax.stages.stage import Stage
from hetjax.stages.windows import Window

BatchArray: TypeAlias = np.ndarray | jax.Array | RowSubset | jax.ShapeDtypeStruct
"""One input of a batch, leading with the batch dim; a shape where only shapes matter."""

Batch: TypeAlias = Mapping[str, Mapping[str, BatchArray] | Mapping[str, float] | float]
"""{module: {input: array}, "loss_tokens": number}; the number may be left out where loss weights are an input.

Where several modules hold a loss it is {module: number}.

With "routes" (`hetjax.stages.routes`) the tokens of an encoder go to other rows than its own."""

ROUTES = "routes"


class StageMicrobatch(NamedTuple):
    """One microbatch of a stage, by its number in the step."""

    stage: str
    microbatch: int


def input_shapes(batch: Batch, stages: Sequence[Stage], links: Sequence[Link], microbatches: int) -> dict[str, Shapes]:
    """Return the inputs that each stage takes of one microbatch from the batch: {stage: {port: shape with sharding}}.

    `microbatches` are those of the loss; a stage's own holds as many of them as its window. `batch` may hold arrays or
    shapes. Raises BatchError for a missing or unknown input, for what is no array, for leading dims that differ, and
    where the batch does not divide.
    """
    _check_arrays(batch)
    _check_names(batch, stages, links)
    sizes = {
        f"{module}.{port}": np.shape(array)[0] if np.ndim(array) else None
        for module, inputs in module_inputs(batch).items()
        for port, array in inputs.items()
    }
    if len(set(sizes.values())) != 1 or None in sizes.values():
        listed = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise BatchError(f"the inputs of a batch must lead with the same number of samples, but have {listed}")
    size = check_batch(stages, next(iter(sizes.values())), microbatches)
    return {
        stage.name: {
            port: _shape(stage, port, array, size * stage.window.size)
            for port, array in module_inputs(batch).get(stage.module, {}).items()
            if port in stage.inputs
        }
        for stage in stages
    }


def check_batch(stages: Sequence[Stage], batch_size: int, microbatches: int) -> int:
    """Return the number of samples in a microbatch of the loss.

    Raises BatchError where the batch does not divide into microbatches, or a microbatch over a stage's batch axes.
    """
    if batch_size % microbatches:
        raise BatchError(
            f"a batch of {batch_size} samples is not divisible into {microbatches} microbatches "
            f"({batch_size} % {microbatches} = {batch_size % microbatches}); change batch_size or microbatches"
        )
    size = batch_size // microbatches
    for stage in stages:
        degree, own = stage.layout.batch_degree, size * stage.window.size
        if own % degree:
            degrees = "*".join(
                f"{axis}={getattr(stage.layout, axis)}" for axis in BATCH_AXES if getattr(stage.layout, axis) > 1
            )
            raise BatchError(
                f"module '{stage.module}': a microbatch of {own} samples (batch {batch_size} / microbatches "
                f"{microbatches // stage.window.size}) is not divisible by {degrees} ({own} % {degree} = "
                f"{own % degree}); "
                "change batch_size, microbatches or the degree"
            )
    return size


def rows_needed(stages: Iterable[Stage], batch_size: int, microbatches: int) -> tuple[int, ...]:
    """Return the rows of a global batch that the devices of this process take, ascending: all of them in one process.

    Microbatch i of b rows covers the rows i*b to (i+1)*b; a device takes those of each microbatch that the
    batch dim of its stage's layout gives it, and the stage's window. Nothing is asked of other processes.

    Raises:
        BatchError: the batch does not divide (see `check_batch`).
    """
    local = [stage for stage in stages if stage.is_local]
    size = check_batch(local, batch_size, microbatches)
    taken: set[int] = set()
    for stage in local:
        order = stage.window.rows(size)
        sharding = stage.activation_sharding(("batch",), order.shape)
        for (rows,) in sharding.addressable_devices_indices_map(order.shape).values():
            taken.update(int(first + row) for first in range(0, batch_size, len(order)) for row in order[rows])
    return tuple(sorted(taken))


def shard_rows(stage: Stage, batch_size: int, microbatches: int) -> Int[np.ndarray, "G H R"]:
    """Return the rows of a batch that each of H shards of a stage takes in each of its G microbatches.

    Raises BatchError where the batch does not divide.
    """
    order = stage.window.rows(check_batch([stage], batch_size, microbatches))
    first = np.arange(0, batch_size, len(order))[:, None]
    return (first + order).reshape(len(first), stage.layout.batch_degree, -1)


def place_inputs(
    batch: Batch, shapes: Mapping[str, Shapes], stages: Sequence[Stage], microbatches: int
) -> dict[StageMicrobatch, Arrays]:
    """Dispatch the copies to devices: arrays by port, for each microbatch on each stage that this process runs.

    Each device gets its own rows only, so an array may be a `RowSubset` that holds those of this process.

    Raises BatchError where the batch is not of the shapes that programs were compiled for, or holds values that no
    program takes (`hetjax.stages.input_values`).
    """
    _check_compiled(batch, shapes, stages, microbatches)
    given = module_inputs(batch)
    check_values(given, stages)
    placed: dict[StageMicrobatch, Arrays] = {}
    for stage in stages:
        if not stage.is_local:
            continue
        for index in range(microbatches // stage.window.size):
            placed[StageMicrobatch(stage.name, index)] = {
                port: _place(given[stage.module][port], aval, index, stage.window)
                for port, aval in shapes[stage.name].items()
            }
    return placed


def _place(array: BatchArray, aval: jax.ShapeDtypeStruct, microbatch: int, window: Window) -> jax.Array:
    """Place one microbatch of a stage on devices: rows of a global array, as many as `aval` has and in its order."""
    order = microbatch * aval.shape[0] + window.rows(aval.shape[0] // window.size)

    def part(index: tuple[slice, ...]) -> np.ndarray:
        rows = order[index[0]]
        # Rows of a subset are taken by slices; without a window they follow each other.
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        slices = [array[(slice(int(run[0]), int(run[-1]) + 1), *index[1:])] for run in runs]
        return np.asarray(slices[0] if len(slices) == 1 else np.concatenate(slices), aval.dtype)

    return jax.make_array_from_callback(aval.shape, aval.sharding, part)


def loss_tokens(batch: Batch, losses: Collection[str]) -> dict[str, float | None]:
    """Return the global count that the summed loss of each module is divided by, 1 for a batch without any.

    None where this process has only some rows of the loss weights, which are then summed on the devices. `losses` are
    the modules that hold one. Raises BatchError for no count, and for one that cannot divide.
    """
    check_loss_tokens(batch, losses)
    return {module: _count(_loss_count(batch, module), module) for module in losses}


def _count(weights: BatchArray | float, module: str) -> float | None:
    if isinstance(weights, RowSubset):
        return None
    count = float(np.sum(weights, dtype=np.float64))
    if not (math.isfinite(count) and count >= 0):
        raise BatchError(
            f"the loss of module '{module}' is to be divided by {count}; loss weights and tokens are 0 or more"
        )
    return count or 1.0


def _loss_count(batch: Batch, module: str) -> BatchArray | float | None:
    """Return what says how many loss tokens a module has: a number, or its loss weights."""
    given = batch.get("loss_tokens")
    number = given.get(module) if isinstance(given, Mapping) else given
    return batch.get(module, {}).get("loss_weights") if number is None else number


def check_loss_tokens(batch: Batch, losses: Collection[str]) -> None:
    """Raise BatchError unless a batch gives each loss a global count or loss weights; it may hold shapes."""
    given = batch.get("loss_tokens")
    if isinstance(given, Mapping):
        unknown = set(given) - set(losses)
        if unknown:
            raise BatchError(
                f"the batch has loss_tokens of '{min(unknown)}', which holds no loss; those that do are "
                f"{', '.join(losses)}"
            )
    elif given is not None and len(losses) > 1:
        raise BatchError(
            f"the batch has loss_tokens={given} for the losses of {', '.join(losses)}, each of which has a count of "
            "its own; give {module: number}"
        )
    for module in losses:
        if _loss_count(batch, module) is None:
            raise BatchError(
                f"a batch needs 'loss_tokens', the number that the summed loss is divided by, "
                f"since module '{module}' has no input 'loss_weights' to sum"
            )


def module_inputs(batch: Batch) -> dict[str, Mapping[str, BatchArray]]:
    """Return the inputs of a batch by module, without its count of loss tokens and its routes."""
    return {name: inputs for name, inputs in batch.items() if name not in ("loss_tokens", ROUTES)}


def _check_arrays(batch: Batch) -> None:
    for module, inputs in module_inputs(batch).items():
        if not isinstance(inputs, Mapping):
            raise BatchError(
                f"batch['{module}'] is {type(inputs).__name__}; a batch is {{module: {{input: array}}}}, "
                "give the module a dict of its inputs"
            )
        for port, array in inputs.items():
            if not (hasattr(array, "shape") and hasattr(array, "dtype")):
                raise BatchError(
                    f"module '{module}': input '{port}' is {type(array).__name__}; make it an array with np.asarray"
                )


def _check_compiled(batch: Batch, shapes: Mapping[str, Shapes], stages: Sequence[Stage], microbatches: int) -> None:
    compiled: dict[str, Shapes] = {}
    count = {stage.module: microbatches // stage.window.size for stage in stages}
    for stage in stages:
        compiled.setdefault(stage.module, {}).update(shapes[stage.name])
    modules = module_inputs(batch)
    for module in {**compiled, **modules}:
        given, known = modules.get(module, {}), compiled.get(module, {})
        if set(given) != set(known):
            raise BatchError(
                f"module '{module}': this batch has the inputs {', '.join(given) or '(none)'}, but programs were "
                f"compiled for {', '.join(known) or '(none)'}; keep inputs fixed"
            )
        for port, aval in known.items():
            shape = (count[module] * aval.shape[0], *aval.shape[1:])
            if not np.can_cast(given[port].dtype, aval.dtype, "same_kind"):
                raise BatchError(
                    f"module '{module}': input '{port}' is {given[port].dtype} in this batch, but programs were "
                    f"compiled for {aval.dtype}; keep dtypes fixed"
                )
            if np.shape(given[port]) != shape:
                raise BatchError(
                    f"module '{module}': input '{port}' has shape {np.shape(given[port])} in this batch, but "
                    f"programs were compiled for {shape}; keep shapes fixed"
                )


def _check_names(batch: Batch, stages: Sequence[Stage], links: Sequence[Link]) -> None:
    fed = {(link.destination, link.destination_port) for link in links}
    for module, inputs in module_inputs(batch).items():
        parts = [stage for stage in stages if stage.module == module]
        if not parts:
            known = ", ".join(dict.fromkeys(stage.module for stage in stages))
            raise BatchError(f"the batch has inputs for '{module}', which is no module; the modules are {known}")
        takes = [port for stage in parts for port in stage.inputs if (stage.name, port) not in fed]
        for port in inputs:
            if port not in takes:
                raise BatchError(
                    f"the batch has an input '{module}.{port}', but module '{module}' takes {', '.join(takes)} "
                    "from the batch; rename or drop it"
                )
    inputs = module_inputs(batch)
    for stage in stages:
        for port in stage.inputs:
            given = port in inputs.get(stage.module, {}) or (stage.name, port) in fed or port in stage.optional
            if not given:
                raise BatchError(
                    f"module '{stage.module}': nothing feeds its input '{port}'; add batch['{stage.module}']['{port}'] "
                    f'or an edge hetjax.Edge("...", "{stage.module}.{port}")'
                )


def _shape(stage: Stage, port: str, array: BatchArray, size: int) -> jax.ShapeDtypeStruct:
    shape = (size, *np.shape(array)[1:])
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=stage.port_sharding(port, shape))
