"""Which computations of a compiled program call which, and how often each runs in one call of the program."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from hetjax.compilation.hlo.program_text import Computation, Instruction, ProgramText

_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|true_computation|false_computation|branch_computations|called_computations"
    r"|select|scatter|comparator)=(\{[^}]*\}|%?[\w.\-]+)"
)
_NAME = re.compile(r"[\w.\-]+")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BRANCHES = ("true_computation", "false_computation", "branch_computations")
# What an asynchronous start calls, its update and done name again.
_NAMES_AGAIN = ("async-update", "async-done")

Branch = Callable[[tuple[str, ...]], Iterable[str]]
"""Chooses which of a conditional's computations count as run."""


class Call(NamedTuple):
    """An instruction that runs a computation.

    Attributes:
        caller: the name of the computation that the instruction is in.
        instruction: the instruction.
        callee: the computation that it runs.
        how: the attribute that names it: "body", "condition", "calls", "to_apply", "branch_computations", ...
        times: how often, or None for a loop whose length the text does not say.
    """

    caller: str
    instruction: Instruction
    callee: str
    how: str
    times: int | None

    @property
    def is_branch(self) -> bool:
        """Whether it is one of a conditional's computations, of which one runs."""
        return self.how in _BRANCHES

    @property
    def runs_instructions(self) -> bool:
        """Whether the device runs the instructions of the callee one by one, so that their results lie in memory.

        A fusion is one kernel, and what a reduction, a sort or a scatter applies works on single elements.
        """
        if self.how in ("select", "scatter", "comparator"):
            return False
        return self.instruction.opcode != "fusion" and (self.how != "to_apply" or self.instruction.opcode == "call")


def calls_of(computation: Computation) -> Iterator[Call]:
    """Yield the calls of a computation's instructions."""
    for instruction in computation.instructions:
        if instruction.opcode in _NAMES_AGAIN or "=" not in instruction.attributes:
            continue
        found = _CALLED.findall(instruction.attributes)
        if not found:
            continue
        known = _TRIP_COUNT.search(instruction.backend_config) if instruction.opcode == "while" else None
        iterations = int(known[1]) if known else None
        for how, names in found:
            times = 1
            if instruction.opcode == "while":
                # The condition is asked once more than the body runs.
                times = iterations if how == "body" or iterations is None else iterations + 1
            # A computation that several branches share runs once.
            for name in dict.fromkeys(_NAME.findall(names)):
                yield Call(computation.name, instruction, name, how, times)


class CallCounts:
    """How often each computation runs in one call of a program: as often as its callers, a loop's body each iteration.

    Args:
        program: the program.
        loop_bound: iterations of a loop whose length the text does not say; without it, asking for what such a
            loop runs is an error.
        branch: which computations of a conditional count as run; all of them where it is not given.
    """

    def __init__(self, program: ProgramText, *, loop_bound: int | None = None, branch: Branch | None = None):
        self.calls: Mapping[str, tuple[Call, ...]] = {
            name: tuple(calls_of(each)) for name, each in program.computations.items()
        }
        self._entry, self._bound, self._branch = program.entry, loop_bound, branch
        self._callers: dict[str, list[Call]] = {}
        for call in (call for calls in self.calls.values() for call in calls):
            self._callers.setdefault(call.callee, []).append(call)
        self._times: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        """Return how often a computation runs.

        Raises ValueError for one that nothing calls, and for a loop of unknown length without a bound.
        """
        if name not in self._times:
            self._times[name] = self._count(name)
        return self._times[name]

    def iterations(self, call: Call) -> int:
        """Return how often a call runs its callee each time that its own computation runs.

        Raises ValueError for a loop of unknown length without a bound.
        """
        if call.times is not None:
            return call.times
        if self._bound is None:
            raise ValueError(
                f"the text does not say how often the computation or loop with the body {call.callee} iterates "
                f"({call.instruction.name} in {call.caller}); state a bound for such loops"
            )
        return self._bound + (call.how == "condition")

    def callers(self, name: str) -> Sequence[Call]:
        """Return the calls that run a computation."""
        return self._callers.get(name, ())

    def materialized(self) -> list[str]:
        """Return the computations that devices run instruction by instruction, the entry first."""
        found, todo = {self._entry: None}, [self._entry]
        while todo:
            for call in self.calls.get(todo.pop(), ()):
                if call.runs_instructions and call.callee in self.calls and call.callee not in found:
                    found[call.callee] = None
                    todo.append(call.callee)
        return list(found)

    def _count(self, name: str) -> int:
        if name == self._entry:
            return 1
        callers = self.callers(name)
        if not callers:
            raise ValueError(
                f"the text does not say how often the computation or loop with the body {name} iterates: "
                "nothing calls it"
            )
        return sum(self(call.caller) * self.iterations(call) for call in callers if self._is_run(call))

    def _is_run(self, call: Call) -> bool:
        if self._branch is None or not call.is_branch:
            return True
        branches = tuple(
            each.callee for each in self.calls[call.caller] if each.is_branch and each.instruction is call.instruction
        )
        return call.callee in self._branch(branches)
