"""Costs of programs and transfers, as given on a command line."""

from __future__ import annotations

import dataclasses

from hetjax.errors import ConfigError
from hetjax.schedule import Costs, Kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class KindCosts:
    """Times of programs and transfers by their kind, in any one unit.

    Args:
        forward: A forward.
        backward: A whole backward.
        backward_input: The part of a backward that makes the gradients of a stage's inputs.
        backward_weight: The part that makes the gradients of its weights.
        update: An update.
        transfer: A transfer from stage to stage.
        offload: A copy of a part of a stage to the memory of the host.
        reload: A copy back.
    """

    forward: float = 1.0
    backward: float = 2.0
    backward_input: float = 1.0
    backward_weight: float = 1.0
    update: float = 0.0
    transfer: float = 0.0
    offload: float = 0.0
    reload: float = 0.0

    def costs(self) -> Costs:
        """Return these costs for `simulate`. Raises ScheduleError for a time that is none."""
        return Costs(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenCosts(KindCosts):
    """Times of programs and transfers by their kind, with exceptions.

    Args:
        of: Exceptions, e.g. {vision forward: 0.5}, {llm.0 backward: 3} or {NAME-OF-EDGE transfer: 0.1}.
    """

    of: dict[str, float] = dataclasses.field(default_factory=dict)

    def costs(self) -> Costs:
        """Return these costs for `simulate`.

        Raises ConfigError for an exception without a known kind, and ScheduleError for a time that is none.
        """
        of = {_what(text): value for text, value in self.of.items()}
        return Costs(**{**dataclasses.asdict(self), "of": of})


def _what(text: str) -> tuple[str, Kind]:
    """Return the stage or edge and the kind of "llm.0 forward"."""
    name, _, kind = text.rpartition(" ")
    kinds = [known.value for known in Kind]
    if not name or kind not in kinds:
        raise ConfigError(
            f"costs.of has an entry {text!r}; write the name of a stage or an edge, a space and one of "
            f"{', '.join(kinds)}"
        )
    return name, Kind(kind)
