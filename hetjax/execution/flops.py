"""Floating-point operations of a step, counted from the matrix products that the modules ask for.

Of attention they are those of the scores that are needed: with a causal mask the half up to the diagonal, with segments
those of the segments that are assumed (`hetjax.models.kernels.attention_scores`), or of one a row where none are.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from hetjax.execution.step_programs import Step
from hetjax.models.kernels.attention_scores import Packing, score_count, seen_in
from hetjax.models.parallel.layout_in_force import NO_DEVICE, layout_in_force
from hetjax.schedule import Costs, Kind
from hetjax.stages.flat_state import Arrays

Packings = Mapping[str, Packing]
"""By module, the segments that are assumed in a row."""

NO_PACKINGS: Packings = types.MappingProxyType({})


def count_flops(function: Callable[..., object], *arguments: object, packing: Packing = ()) -> int:
    """Return the FLOPs of all matrix products in a call that are needed: two for each multiply and add.

    `arguments` are arrays or shapes, or trees of them. A scan counts as often as it runs. (XLA's own `cost_analysis`
    counts the body of a loop once, so it misses all layers but one of a stack.) Elementwise work is left out, as is
    usual. `packing` says which segments are assumed.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr, packing)


def _count(jaxpr: Jaxpr | ClosedJaxpr, packing: Packing) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(left[dim] for dim in contracted) * math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name.startswith("ragged_dot"):
            # Tokens of each group by the matrix of that group, or by its other tokens: every token once.
            left, right = (invar.aval.shape for invar in equation.invars[:2])
            total += 2 * math.prod(left) * right[-1]
        inside = sum(_count(inner, packing) for inner in _inner(equation.params.values()))
        total += _repeats(equation) * (_needed(equation, inside, packing) if inside else 0)
    return total


def _needed(equation: JaxprEqn, inside: int, packing: Packing) -> int:
    """Return how many of the FLOPs inside an equation are needed.

    In the scopes of attention with a mask that is an equation on queries and keys, whose programs ask for all scores.
    """
    seen = seen_in(str(equation.source_info.name_stack))
    lengths = {invar.aval.shape[1] for invar in equation.invars if invar.aval.ndim == 4}
    if not any(seen) or len(lengths) != 1:
        return inside
    (length,) = lengths
    return inside * score_count(seen, length, length, packing) // length**2


def _repeats(equation: JaxprEqn) -> int:
    """Return how often programs inside an equation run: those of a scan in turn, of a `shard_map` on devices."""
    match equation.primitive.name:
        case "scan":
            return equation.params["length"]
        case "shard_map":
            specs = (*equation.params["in_specs"], *equation.params["out_specs"])
            entries = [entry for spec in specs for entry in spec if entry is not None]
            axes = {axis for entry in entries for axis in ((entry,) if isinstance(entry, str) else entry)}
            # Along an axis that no array is split over, devices repeat each other's work.
            return math.prod(equation.params["mesh"].shape[axis] for axis in axes)
    return 1


def _inner(values: Iterable[object]) -> Iterator[Jaxpr | ClosedJaxpr]:
    """Yield the programs inside an equation: jaxprs, closed or open, alone or in a tuple."""
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _inner(value)
        elif hasattr(value, "eqns"):
            yield value


def _no_layout() -> AbstractContextManager[None]:
    """Return a block in which layers run as on one device of no kind: a fused kernel would hide its products."""
    return layout_in_force(lambda x, dims: x, device=NO_DEVICE)


def forward_flops(
    step: Step, stages: Collection[str] | None = None, packings: Packings = NO_PACKINGS
) -> dict[str, int]:
    """Return the FLOPs of each stage's forward for one of its microbatches, over all devices of its mesh.

    They are the same whatever its layout. The keys are stage names: `stages`, or all.
    """
    with _no_layout():
        return {
            name: count_flops(
                stage.call_whole,
                stage.compute_params,
                stage.buffers,
                step.programs[name].inputs,
                packing=packings.get(stage.module, ()),
            )
            for name, stage in step.stages.items()
            if stages is None or name in stages
        }


def estimated_costs(step: Step) -> Costs:
    """Estimate the costs of a step's actions: FLOPs over the devices that share them, in units of the longest forward.

    Devices count as equally fast, transfers as immediate; each part of a backward takes one forward, an update a
    tenth of a unit.
    """
    per_device = {name: flops / step.stages[name].mesh.size for name, flops in forward_flops(step).items()}
    unit = max(per_device.values()) or 1.0
    of = {(name, Kind.FORWARD): flops / unit for name, flops in per_device.items()}
    for part in (Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT):
        of |= {(name, part): flops / unit for name, flops in per_device.items()}
    of |= {(name, Kind.BACKWARD): backward_factor(step, name) * flops / unit for name, flops in per_device.items()}
    return Costs(of=of)


def backward_factor(step: Step, stage: str, packings: Packings = NO_PACKINGS) -> float:
    """Return the FLOPs of a stage's backward in forwards: one for the gradient of its inputs, one for its weights'.

    A stage that trains counts as two (its first layer asks for no gradient of the batch: a part too small
    to tell apart), a frozen one that passes a gradient on as one, and one without backward as none. Where a part
    trains, the products of the backward are counted.
    """
    if not step.programs[stage].has_backward:
        return 0
    if step.stages[stage].trains and step.stages[stage].frozen:
        return _counted_factor(step, stage, packings.get(step.stages[stage].module, ()))
    return 2 if step.stages[stage].trains else 1


def _counted_factor(step: Step, name: str, packing: Packing) -> float:
    stage, program = step.stages[name], step.programs[name]

    def forward_and_backward(params: Arrays, buffers: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        def call(trained: Arrays, differentiated: Arrays) -> Arrays:
            outputs, _ = stage.call_whole({**params, **trained}, buffers, {**inputs, **differentiated})
            return {port: outputs[port] for port in program.gradient_outputs}

        trained = {path: params[path] for path in stage.trained}
        differentiated = {port: inputs[port] for port in program.gradient_inputs}
        outputs, vjp = jax.vjp(call, trained, differentiated)
        return vjp(outputs)

    with _no_layout():
        arguments = stage.compute_params, stage.buffers, program.inputs
        forward = count_flops(stage.call_whole, *arguments, packing=packing)
        return (count_flops(forward_and_backward, *arguments, packing=packing) - forward) / max(forward, 1)


def model_flops(step: Step, packings: Packings = NO_PACKINGS) -> int:
    """Return the FLOPs that one training step needs: per microbatch a forward and `backward_factor` times as much.

    Where everything trains that is, in tokens T, weights N that tokens are multiplied with, layers L,
    heads H of width K, and sequences of length S, the model FLOPs of PaLM's utilisation (Chowdhery et
    al. 2022, appendix B): T * (6 N + 12 L H K S), summed over encoder and language model, but of causal attention
    S + 1 in place of 2 S, as no token needs the scores behind it. What is computed again in the backward does not
    count.
    """
    forwards = forward_flops(step, packings=packings)
    return sum(
        step.schedule.count(name) * flops * (1 + backward_factor(step, name, packings))
        for name, flops in forwards.items()
    )
