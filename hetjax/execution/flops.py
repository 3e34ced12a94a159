"""Floating-point operations of a step, counted from the matrix products that the modules ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from hetjax.execution.step_programs import Step
from hetjax.models.parallel.layout_in_force import NO_DEVICE, layout_in_force
from hetjax.schedule import Costs, Kind
from hetjax.stages.flat_state import Arrays


def count_flops(function: Callable[..., object], *arguments: object) -> int:
    """Return the FLOPs of all matrix products in a call: two for each multiply and add.

    `arguments` are arrays or shapes, or trees of them. A scan counts as often as it runs. (XLA's own `cost_analysis`
    counts the body of a loop once, so it misses all layers but one of a stack.) Elementwise work is left out, as is
    usual.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Jaxpr | ClosedJaxpr) -> int:
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
        total += _repeats(equation) * sum(_count(inner) for inner in _inner(equation.params.values()))
    return total


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


def forward_flops(step: Step, stages: Collection[str] | None = None) -> dict[str, int]:
    """Return the FLOPs of each stage's forward for one of its microbatches, over all devices of its mesh.

    They are the same whatever its layout. The keys are stage names: `stages`, or all.
    """
    with _no_layout():
        return {
            name: count_flops(stage.call_whole, stage.compute_params, stage.buffers, step.programs[name].inputs)
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


def backward_factor(step: Step, stage: str) -> float:
    """Return the FLOPs of a stage's backward in forwards: one for the gradient of its inputs, one for its weights'.

    A stage that trains counts as two (its first layer asks for no gradient of the batch: a part too small
    to tell apart), a frozen one that passes a gradient on as one, and one without backward as none. Where a part
    trains, the products of the backward are counted.
    """
    if not step.programs[stage].has_backward:
        return 0
    if step.stages[stage].trains and step.stages[stage].frozen:
        return _counted_factor(step, stage)
    return 2 if step.stages[stage].trains else 1


def _counted_factor(step: Step, name: str) -> float:
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
        forward = count_flops(stage.call_whole, *arguments)
        return (count_flops(forward_and_backward, *arguments) - forward) / max(forward, 1)


def model_flops(step: Step) -> int:
    """Return the FLOPs that one training step needs: per microbatch a forward and `backward_factor` times as much.

    Where everything trains that is, in tokens T, weights N that tokens are multiplied with, layers L,
    heads H of width K, and sequences of length S, the model FLOPs of PaLM's utilisation (Chowdhery et
    al. 2022, appendix B): T * (6 N + 12 L H K S), summed over encoder and language model. What is
    computed again in the backward does not count.
    """
    forwards = forward_flops(step)
    return sum(
        step.schedule.count(name) * flops * (1 + backward_factor(step, name)) for name, flops in forwards.items()
    )
