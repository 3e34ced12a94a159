"""Steps whose loss or gradient is no finite number: counted, and too many in a row end the run."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
from jaxtyping import Float

from hetjax.errors import DivergenceError
from hetjax.training.metrics import StepMetrics


class BadSteps:
    """Watches the numbers of steps; the trainer has left the weights as they were after a bad one.

    Args:
        limit: Bad steps in a row that are skipped.
        total: Those of the run before this process.

    Attributes:
        total: Bad steps so far.
    """

    def __init__(self, limit: int, *, total: int = 0):
        self._limit, self._in_a_row = limit, 0
        self.total = total

    def check(self, step: int, numbers: StepMetrics, square_sums: Mapping[str, Float[jax.Array, ""]]) -> str | None:
        """Return what is wrong with a step, or None.

        Args:
            step: Its number.
            numbers: Its metrics.
            square_sums: Sums of squares of the gradients, by stage of this process.

        Raises:
            DivergenceError: it is one bad step too many; or the gradient is finite, so that the step was taken, and
                another number is not.
        """
        if all(map(math.isfinite, numbers.values())):
            self._in_a_row = 0
            return None
        what = _what(numbers, square_sums)
        if math.isfinite(numbers["grad_norm"]):  # by which the trainer skips: this step has changed the weights
            raise DivergenceError(f"step {step}: {what}; lower optimizer.learning_rate, or find what makes it")
        self._in_a_row += 1
        self.total += 1
        if self._in_a_row > self._limit:
            row = f", as the {self._limit} steps before it, which changed nothing" if self._limit else ""
            raise DivergenceError(
                f"step {step}: {what}{row}; lower optimizer.learning_rate or max_grad_norm and go on from the newest "
                "checkpoint with --resume changed"
            )
        return what


def _what(numbers: StepMetrics, square_sums: Mapping[str, Float[jax.Array, ""]]) -> str:
    bad = [stage for stage, square_sum in square_sums.items() if not math.isfinite(float(square_sum))]
    where = f", and the gradients of {', '.join(bad)} are not finite" if bad else ""
    others = "".join(
        f", {name} {number:g}"
        for name, number in numbers.items()
        if name not in ("loss", "grad_norm") and not math.isfinite(number)
    )
    return f"the loss is {numbers['loss']:g}, the gradient norm {numbers['grad_norm']:g}{others}{where}"
