"""Choose the shapes of a run's batches, which are compiled before its first step."""

from __future__ import annotations

import functools
from collections import defaultdict

from hetjax.config.build import BatchShapes, batch_shapes, shapes_of_rows
from hetjax.config.run_config import TrainConfig
from hetjax.data import BatchesAhead
from hetjax.execution.flops import backward_factor, forward_flops
from hetjax.trainer import Trainer


def choose_batch_shapes(data: BatchesAhead, trainer: Trainer, config: TrainConfig) -> list[BatchShapes]:
    """Return the shapes of the batches that `data` will give, the largest first, choosing them where it has none yet.

    What a shape costs is estimated from the FLOPs of the largest one's programs.
    """
    if config.data.shapes > 1:
        data.choose_shapes(work=functools.partial(_module_flops, trainer, config), splits=_splits(trainer))
    return [shapes_of_rows(shape, config.data.batch_size) for shape in reversed(data.shapes)]


def _module_flops(trainer: Trainer, config: TrainConfig) -> dict[str, float]:
    """Return the FLOPs of each module's forward and backward, for a step of the largest shape."""
    step = trainer.trace(batch_shapes(config.data, config.model)).step
    flops: dict[str, float] = defaultdict(float)
    for name, forward in forward_flops(step).items():
        flops[step.stages[name].module] += step.schedule.count(name) * forward * (1 + backward_factor(step, name))
    return dict(flops)


def _splits(trainer: Trainer) -> dict[str, int]:
    """Return into how many parts each module's layout splits a sequence."""
    return {stage.module: stage.layout.context * stage.layout.tensor for stage in trainer.stages}
