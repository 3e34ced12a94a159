"""Name, show and save what an evaluation finds: for each held-out set its loss, and its answers by metrics."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.table import Table

from hetjax.data import HeldOutSet
from hetjax.evaluation.answer_prompts import Answered, EvalResult
from hetjax.evaluation.held_out_loss import LossResult
from hetjax.metrics.registry import Metric, total


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetResult:
    """What an evaluation finds on one held-out set.

    Attributes:
        settings: The set.
        metrics: The metrics of its answers; the first is the one that groups are shown by.
        by: The key of samples by whose values answers are grouped; None for no groups.
        loss: Its loss; None where none is asked for.
        given: The answers to the questions as they are; None without metrics.
        blanked: Those with the media of a modality blanked, by the modality.
    """

    settings: HeldOutSet
    metrics: tuple[Metric, ...]
    by: str | None
    loss: LossResult | None
    given: EvalResult | None
    blanked: Mapping[str, EvalResult]

    @property
    def headline(self) -> dict[str, float]:
        """Return the numbers of the whole set: "eval/loss", "eval/accuracy", behind "eval/NAME" for a set by name."""
        numbers = {} if self.loss is None else {f"{self.settings.prefix}/loss": self.loss.loss}
        return numbers | ({} if self.given is None else self._scores(self.settings.prefix, self.given.scores))

    @property
    def numbers(self) -> dict[str, float]:
        """Return all numbers by their names in the log.

        Behind those of the whole set come "eval/<by>/<group>" by the first metric, for each further metric
        "eval/<by>/<group>/<metric>", and the same after "eval/blank_<modality>/".
        """
        prefix, numbers = self.settings.prefix, self.headline
        if self.given is not None:
            numbers |= self._grouped(prefix, self.given)
        for modality, result in self.blanked.items():
            below = f"{prefix}/blank_{modality}"
            numbers |= self._scores(below, result.scores) | self._grouped(below, result)
        return numbers

    def _scores(self, prefix: str, scores: Mapping[str, float]) -> dict[str, float]:
        return {f"{prefix}/{metric.key}": scores[metric.name] for metric in self.metrics}

    def _grouped(self, prefix: str, result: EvalResult) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for name, group in result.groups.items():
            first, *others = self.metrics
            numbers[f"{prefix}/{self.by}/{name}"] = group.scores[first.name]
            for metric in others:
                numbers[f"{prefix}/{self.by}/{name}/{metric.key}"] = group.scores[metric.name]
        return numbers

    @property
    def notes(self) -> Iterator[str]:
        """Yield which samples could not be used."""
        for bad in () if self.given is None else self.given.bad:
            yield f"skipped a bad held-out sample: {bad}"
        left_out = () if self.loss is None else self.loss.left_out
        if left_out:
            yield f"left {len(left_out)} samples out of {self.settings.prefix}/loss, the first: {left_out[0]}"

    def table(self) -> Table:
        """Return a table of the answers: a row for each group and all, a column for each metric and each blanked."""
        title = "held-out answers" if self.settings.name is None else f"held-out answers: {self.settings.name}"
        table = Table(title=title, title_justify="left")
        table.add_column(self.by or "")
        first = self.metrics[0]
        headings = [
            *(metric.key for metric in self.metrics),
            *(f"{first.key}, {name} blanked" for name in self.blanked),
        ]
        for heading in ("questions", *headings):
            table.add_column(heading, justify="right")
        for name, group in self.given.groups.items():
            blanked = [result.groups[name].scores[first.name] for result in self.blanked.values()]
            table.add_row(name, f"{group.count}", *map(_shown, [*group.scores.values(), *blanked]))
        blanked = [result.scores[first.name] for result in self.blanked.values()]
        table.add_row("all", f"{self.given.count}", *map(_shown, [*self.given.scores.values(), *blanked]))
        return table

    def save(self, folder: Path, step: int) -> Path:
        """Write every answer as a line of JSON into a folder; returns the file: answers-STEP.jsonl, NAME-STEP.jsonl."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.settings.name or 'answers'}-{step}.jsonl"
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            for each in self.given.answered:
                file.write(json.dumps(_line(each), ensure_ascii=False) + "\n")
        partial.replace(path)
        return path


def _line(answered: Answered) -> dict[str, object]:
    line = {
        "where": answered.where,
        "prompt": answered.prompt,
        "expected": list(answered.expected),
        "answer": answered.answer,
        "scores": {name: total([measured]).number for name, measured in answered.measures.items()},
    }
    return line if answered.group is None else {**line, "group": answered.group}


def _shown(number: float) -> str:
    return f"{number:.4f}"
