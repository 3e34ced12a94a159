"""Evaluate a training state on every held-out set of a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from hetjax.config.build import batched
from hetjax.config.eval_config import EvalConfig
from hetjax.data import HeldOutSet, SampleLoader, Source, eval_batches, held_out_sets, loss_batches
from hetjax.evaluation.answer_prompts import EvalResult, answer_prompts
from hetjax.evaluation.held_out_loss import HeldOutLoss
from hetjax.evaluation.results import SetResult
from hetjax.generation.generator import Generator
from hetjax.generation.stage_weights import Weights
from hetjax.metrics.registry import Metric, find_metrics
from hetjax.state.averaged import averaged_state
from hetjax.state.train_state import TrainState
from hetjax.trainer import Trainer


class Asked(NamedTuple):
    """A held-out set, the metrics of its answers, and whether its loss is asked for."""

    settings: HeldOutSet
    metrics: tuple[Metric, ...]
    loss: bool


class Evaluator:
    """Computes the loss of each held-out set, and answers its questions, on the meshes of training.

    Args:
        trainer: the trainer of the states.
        loader: loads the samples, one a row, its media not balanced.
        settings: how it is evaluated.

    Attributes:
        sets: what is asked of each set; none where the run has no held-out data.
    """

    def __init__(self, trainer: Trainer, loader: SampleLoader, settings: EvalConfig):
        self._loader, self._settings = loader, settings
        self.sets = asked_sets(loader.config.eval, settings)
        self._generator: Generator | None = None
        self._loss: HeldOutLoss | None = None
        if any(each.metrics for each in self.sets):
            self._generator = Generator(
                trainer,
                max_new_tokens=settings.max_new_tokens,
                stop_token=loader.tokenizer.stop_ids,
                sampling=settings.sampling,
            )
        if any(each.loss for each in self.sets):
            rows = loader.config.batch_size // trainer.microbatches
            shapes = loader.shapes(training=True)
            self._loss = HeldOutLoss(trainer, lambda count: batched(shapes, count), rows)

    def tasks(self) -> dict[str, Callable[[], object]]:
        """Trace all programs, and list what remains to compile, by name."""
        tasks = {} if self._loss is None else self._loss.tasks()
        if self._generator is not None:
            prompts = batched(self._loader.shapes(training=False), self._settings.batch_size)
            tasks |= self._generator.trace(prompts)
        return tasks

    def evaluate(self, state: TrainState, *, blank: Collection[str] = ()) -> tuple[SetResult, ...]:
        """Evaluate a state, which stays valid, on every set; once more with each modality of `blank` blanked.

        Raises DataError where a set has no usable sample, or too many bad ones.
        """
        if self._settings.weights == "average":
            state = averaged_state(state)
        return tuple(self._evaluated(state, blank))

    def _evaluated(self, state: TrainState, blank: Collection[str]) -> Iterator[SetResult]:
        for asked, (_, source) in zip(self.sets, self._loader.held_out_sets, strict=True):
            loss = None
            if asked.loss:
                loss = self._loss(state, loss_batches(self._loader, source, self._loss.rows))
            given, blanked = None, {}
            if asked.metrics:
                weights = self._generator.prepare(state)
                given = self._answers(weights, source, asked)
                blanked = {modality: self._answers(weights, source, asked, (modality,)) for modality in blank}
                del weights
            yield SetResult(
                settings=asked.settings,
                metrics=asked.metrics,
                by=self._settings.by,
                loss=loss,
                given=given,
                blanked=blanked,
            )

    def _answers(self, weights: Weights, source: Source, asked: Asked, blank: tuple[str, ...] = ()) -> EvalResult:
        """Answer every question of a set, with the media of some modalities blanked."""
        settings = self._settings
        batches = eval_batches(self._loader, settings.batch_size, by=settings.by, blank=blank, source=source)
        return answer_prompts(self._generator, weights, batches, self._loader.tokenizer, asked.metrics)


def asked_sets(given: object, settings: EvalConfig) -> tuple[Asked, ...]:
    """Return what is asked of each set that `data.eval` names. Raises ConfigError for an unknown metric."""
    return tuple(
        Asked(
            each,
            find_metrics(settings.metrics if each.metrics is None else each.metrics, _where(each)),
            settings.loss if each.loss is None else each.loss,
        )
        for each in held_out_sets(given)
    )


def headline_names(sets: tuple[Asked, ...]) -> dict[str, bool]:
    """Return the numbers that an evaluation of these sets gives, and of each whether a higher one is better."""
    names = {}
    for each in sets:
        names |= {f"{each.settings.prefix}/loss": False} if each.loss else {}
        names |= {f"{each.settings.prefix}/{metric.key}": metric.higher_is_better for metric in each.metrics}
    return names


def _where(held: HeldOutSet) -> str:
    if held.metrics is None:
        return "eval.metrics"
    return "data.eval.metrics" if held.name is None else f"data.eval.{held.name}.metrics"
