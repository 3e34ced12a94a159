"""hetjax placement: which module is where, and what its state takes on each device."""

from __future__ import annotations

import dataclasses

import jax

from hetjax.config.build import build_trainer, use_devices
from hetjax.config.run_config import TrainConfig
from hetjax.tools.outcome import Outcome
from hetjax.tools.pictures import output_path
from hetjax.training.display import placement_rows, placement_table


def placement(*, config: TrainConfig, out: str | None = None) -> Outcome:
    """Show where every module of a run lives: mesh, devices, parameters, memory of the state on each device.

    Args:
        out: Picture to draw as well, e.g. placement.png (or .svg, .pdf).
    """
    path = None if out is None else output_path(out)
    use_devices(config.fake_devices, (config.param_dtype, config.compute_dtype))
    trainer = build_trainer(config)
    if path is not None:
        from hetjax.meshes.draw import draw_placement  # only here: matplotlib takes a while to import

        draw_placement(trainer.placement, path, title=config.name, devices=jax.device_count())
    numbers = {"name": config.name, "stages": [dataclasses.asdict(row) for row in placement_rows(trainer)], "out": out}
    return Outcome(numbers=numbers, shown=(placement_table(trainer), *([f"wrote {out}"] if out else [])))
