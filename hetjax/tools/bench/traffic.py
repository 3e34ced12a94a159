"""Count what one training step sends between devices, from its compiled programs."""

from __future__ import annotations

from hetjax.boundary import Transport
from hetjax.compilation.hlo import bytes_received
from hetjax.execution.step_programs import Step


def bytes_of_step(step: Step) -> dict[str, int]:
    """Return the bytes that devices receive from others in one step, by module and for the boundaries between stages.

    Programs count what is in their text, loops as often as they turn; boundaries count their plans. What is left out
    is small: sums of squares, the loss, and what ends a step of a module with state.
    """
    microbatches, found = step.schedule.microbatches, {}
    for name, program in step.programs.items():
        update = step.updates.get(name)
        once = 0 if update is None else sum(bytes_received(each.text) for each in update.programs.values())
        each = sum(bytes_received(part.text) for part in program.programs.values())
        module = program.stage.module
        found[module] = found.get(module, 0) + microbatches * each + once
    ways = [way for boundary in step.boundaries.values() for way in (boundary.forward, boundary.backward) if way]
    return {**found, "boundaries": microbatches * sum(map(_of_transport, ways))}


def _of_transport(transport: Transport) -> int:
    return transport.plan.bytes_moved + transport.plan.bytes_gathered
