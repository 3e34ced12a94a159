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
    found: dict[str, int] = {}
    for name, program in step.programs.items():
        update = step.updates.get(name)
        once = 0 if update is None else sum(bytes_received(each.text) for each in update.programs.values())
        each = sum(bytes_received(part.text) for part in program.programs.values())
        module = program.stage.module
        found[module] = found.get(module, 0) + step.schedule.count(name) * each + once
    crossed = 0
    for name, boundary in step.boundaries.items():
        times = step.schedule.count(step.links[name].source) * boundary.each
        crossed += times * sum(_of_transport(transport) for _, transport in boundary.transports)
    return {**found, "boundaries": crossed}


def _of_transport(transport: Transport) -> int:
    return transport.plan.bytes_moved + transport.plan.bytes_gathered
