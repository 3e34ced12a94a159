"""The training state with averaged weights in place of those that train, to evaluate them."""

from __future__ import annotations

import dataclasses

from hetjax.optimizers.average import averaged
from hetjax.state.train_state import TrainState


def averaged_state(state: TrainState) -> TrainState:
    """Return a state whose weights are the averages that its optimizers keep (`hetjax.optimizers.average`).

    It is for evaluation, and shares its arrays with `state`, which a step consumes.
    """
    return dataclasses.replace(
        state,
        stages={
            name: dataclasses.replace(stage, params=averaged(stage.params, stage.opt_state))
            for name, stage in state.stages.items()
        },
    )
