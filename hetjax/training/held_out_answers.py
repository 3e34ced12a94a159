"""Name and show what share of the held-out questions a run answers: in all, by group, and with a modality blanked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rich.table import Table

from hetjax.generation.evaluate import EvalResult
from hetjax.training.metrics import StepMetrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutAnswers:
    """The answers of one evaluation.

    Attributes:
        by: The key of samples by whose values they are grouped; None for no groups.
        given: The answers to the questions as they are.
        blanked: Those with the media of a modality blanked, by the modality.
    """

    by: str | None
    given: EvalResult
    blanked: Mapping[str, EvalResult]

    def metrics(self) -> StepMetrics:
        """Return the shares of exact answers, from 0 to 1.

        They are "eval/accuracy", for each group "eval/<by>/<group>", and the same after "eval/blank_<modality>/".
        """
        named = {"eval": self.given, **{f"eval/blank_{name}": result for name, result in self.blanked.items()}}
        return {
            f"{prefix}/{name}": accuracy
            for prefix, result in named.items()
            for name, accuracy in (
                ("accuracy", result.accuracy),
                *((f"{self.by}/{group}", each.accuracy) for group, each in result.groups.items()),
            )
        }

    def table(self) -> Table:
        """Return a table with a row for each group and one for all, and a column for what was blanked."""
        table = Table(title="exact answers on held-out questions", title_justify="left")
        table.add_column(self.by or "")
        for heading in ("questions", "as given", *(f"{name} blanked" for name in self.blanked)):
            table.add_column(heading, justify="right")
        results = (self.given, *self.blanked.values())
        for group, each in self.given.groups.items():
            table.add_row(group, f"{each.count}", *(_percent(result.groups[group].accuracy) for result in results))
        table.add_row("all", f"{self.given.count}", *(_percent(result.accuracy) for result in results))
        return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
