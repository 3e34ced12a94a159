"""The settings of evaluations, and of what they choose."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hetjax.config.limits import check_least
from hetjax.data.schemas import ABOUT
from hetjax.errors import ConfigError
from hetjax.models.sampling import GREEDY, Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The settings of evaluating on held-out samples: their loss, and answers to their questions.

    Args:
        every: Steps between evaluations, or null for only one, at the end.
        batch_size: Questions answered at once.
        max_new_tokens: Longest answer, in tokens.
        sampling: How each token is chosen; the most likely one unless a temperature is given.
        by: Key of the held-out samples, such as task or language, by whose values the answers are also counted one by
            one; null for all together.
        metrics: What answers are measured by, where a held-out set says nothing else: exact_match, anls, wer,
            relaxed_accuracy, choice, box_iou, box_accuracy, or one that a program registers; [] answers nothing.
        loss: Whether the loss of held-out samples is computed too, where a set says nothing else.
        answers: Whether every answer is saved, a line of JSON each, in the folder answers of the run.
        blank: Modalities, such as [image, audio], for each of which the questions are answered once more after the
            last step, with its media blanked: whoever answers as well then does not look, or listen.
        weights: Those that answer: trained, or average, as optimizer.ema or a schedule-free optimizer keeps it.
    """

    every: int | None = None
    batch_size: int = 100
    max_new_tokens: int = 16
    sampling: Sampling = GREEDY
    by: str | None = None
    metrics: tuple[str, ...] = ("exact_match",)
    loss: bool = True
    answers: bool = False
    blank: tuple[str, ...] = ()
    weights: Literal["trained", "average"] = "trained"

    def __post_init__(self):
        if self.by is not None and self.by not in ABOUT:
            raise ConfigError(f"eval.by is {self.by!r}, which samples may not have; give one of {', '.join(ABOUT)}")
        check_least(self, 1, "every", "batch_size", "max_new_tokens", section="eval.")
        sampling = self.sampling
        if not sampling.draws and (sampling.top_p < 1 or sampling.top_k > 0):
            raise ConfigError(
                f"eval.sampling.temperature is 0, so that the most likely token is taken, and top_p = {sampling.top_p} "
                f"and top_k = {sampling.top_k} change nothing; give a temperature too"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestCheckpoint:
    """The settings of keeping the best checkpoint.

    Args:
        metric: A number of the evaluations by its name in the log, such as eval/loss, eval/accuracy or eval/SET/anls.
        mode: Whether the least (min) or the largest (max) is best; null for what the metric says of itself.
    """

    metric: str
    mode: Literal["min", "max"] | None = None
