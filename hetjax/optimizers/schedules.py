"""Learning rates over the steps of a run: a rise from zero, then one of five courses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax

ScheduleKind: TypeAlias = Literal["cosine", "linear", "constant", "wsd", "inverse_root"]
"""What the learning rate does after the warm-up."""


def make_schedule(
    kind: ScheduleKind, *, peak: float, final: float, warmup_steps: int, decay_steps: int | None, steps: int
) -> Callable[[int | jax.Array], jax.Array]:
    """Return the learning rate as a function of the steps done.

    It rises linearly from zero to `peak` over `warmup_steps`. Then "cosine" falls by half a cosine, and "linear" in a
    line, to `final` at step `steps`; "constant" stays; "wsd" (warm-up, stable, decay: Hu et al. 2024, MiniCPM) stays
    and falls in a line to `final` over the last `decay_steps` steps (None for a tenth of all); "inverse_root" (Vaswani
    et al. 2017) falls as 1 / sqrt(step), not below `final`. Rates are counted from 1: one of zero would waste a step.
    """
    start = 0.0 if warmup_steps else peak
    match kind:
        case "cosine":
            rates = optax.warmup_cosine_decay_schedule(start, peak, warmup_steps, max(steps, warmup_steps + 1), final)
        case "linear":
            after = optax.linear_schedule(peak, final, max(steps - warmup_steps, 1))
            rates = _warmed(after, peak, warmup_steps)
        case "constant":
            rates = _warmed(optax.constant_schedule(peak), peak, warmup_steps)
        case "wsd":
            falling = decay_steps_of(decay_steps, steps)
            begin = max(steps - falling - warmup_steps, 0)
            rates = _warmed(optax.linear_schedule(peak, final, falling, begin), peak, warmup_steps)
        case "inverse_root":
            least = max(warmup_steps, 1)
            rates = _warmed(
                lambda after: jnp.maximum(peak * jnp.sqrt(least / (after + least)), final), peak, warmup_steps
            )
    return lambda done: rates(done + 1)


def decay_steps_of(decay_steps: int | None, steps: int) -> int:
    """Return how many steps "wsd" falls over."""
    return max(steps // 10, 1) if decay_steps is None else decay_steps


def _warmed(after: optax.Schedule, peak: float, warmup_steps: int) -> optax.Schedule:
    if not warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps])


def rest_of_schedule(
    kind: ScheduleKind,
    now: Callable[[int], jax.Array],
    then: Callable[[int], jax.Array],
    *,
    done: int,
    steps: int,
    before: int,
) -> str:
    """Return what the learning rate will be in the rest of a run that had another number of steps.

    Args:
        now, then: the learning rate by steps done, for `steps` and for the number of steps `before`.
        done: steps done so far.
    """
    shown = sorted({min(done + (steps - 1 - done) * part // 4, steps - 1) for part in range(5)})
    course = ", ".join(f"{float(now(step)):.3g} at step {step + 1}" for step in shown)
    was = f", where it would have been {float(then(done)):.3g} now" if done < before else ""
    return (
        f"the run had {before} steps and now has {steps}: the learning rate ({kind}) goes on over {steps} steps{was}: "
        f"{course}"
    )
