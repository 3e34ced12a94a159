"""hetjax evaluate: the held-out loss and answers of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import jax
import optax
from rich.table import Table

from hetjax.checkpoint.warm_start import open_checkpoint, open_weights
from hetjax.compilation.compile_all import compile_all
from hetjax.config.build import build_graph, use_devices
from hetjax.config.build_loader import check_blank, make_loader
from hetjax.config.run_config import TrainConfig, load_config
from hetjax.errors import ConfigError
from hetjax.evaluation.evaluator import Evaluator
from hetjax.evaluation.results import SetResult
from hetjax.generation.model_folder import run_settings
from hetjax.meshes import Placement
from hetjax.state.weight_source import WeightSource
from hetjax.tools.outcome import Outcome, busy
from hetjax.trainer import Trainer


def evaluate(config: TrainConfig | None = None, *, checkpoint: str, answers: str | None = None) -> Outcome:
    """Evaluate a checkpoint on the held-out sets that settings name: their loss, and their answers by metrics.

    The settings are those of --config, on whose placement it runs; without it those that the run of the checkpoint
    keeps.

    Args:
        config: The settings.
        checkpoint: A run's folder, that of one step (runs/NAME/checkpoints/STEP), what `hetjax convert` made, or a
            Hugging Face folder.
        answers: Folder that every answer is saved into, a line of JSON each.
    """
    if config is None:
        config = _settings_beside(checkpoint)
    if config.data.eval is None:
        raise ConfigError("data.eval is null, so there is nothing to evaluate on; give --config FILE --data.eval FILE")
    use_devices(config.fake_devices, (config.param_dtype, config.compute_dtype))
    check_blank(config.eval.blank, config.data, config.model)
    loader = make_loader(config.data, config.model)
    graph = build_graph(config.model)
    trainer = Trainer(
        graph,
        Placement(config.placement),
        optimizer=optax.sgd(0.0),  # which keeps nothing beside the weights
        schedule=config.schedule,
        microbatches=config.microbatches,
        param_dtype=config.param_dtype,
        compute_dtype=config.compute_dtype,
        kernels=config.kernels,
    )
    average = config.eval.weights == "average"
    source = open_checkpoint(checkpoint, average=True) if average else open_weights(checkpoint)
    lacking = [module for module in graph.modules if module not in source.modules]
    if lacking:
        raise ConfigError(
            f"{source.name} holds {', '.join(source.modules)}, but the model has a {lacking[0]} too; give a checkpoint "
            "of the whole model"
        )
    evaluator = Evaluator(trainer, loader, config.eval)
    with busy("compiling"):
        compile_all(evaluator.tasks(), progress=False)
    with busy("reading weights"):
        state = trainer.init(config.seed, warm_start=dict.fromkeys(graph.modules, source))
    with busy("evaluating"):
        found = evaluator.evaluate(state, blank=config.eval.blank)
    return _outcome(found, source, answers)


def _settings_beside(checkpoint: str) -> TrainConfig:
    path = run_settings(Path(checkpoint))
    if path is None:
        raise ConfigError(f"{checkpoint} is not in the folder of a run, which keeps its settings; give --config FILE")
    return load_config(["--config", str(path)])[0]


def _outcome(found: tuple[SetResult, ...], source: WeightSource, answers: str | None) -> Outcome:
    step = getattr(source, "step", 0)
    numbers = {"checkpoint": source.name, "step": step}
    table = Table(title=f"{source.name} on held-out samples", title_justify="left")
    for heading in ("number", "value", "of"):
        table.add_column(heading, justify="left" if heading == "number" else "right")
    notes, tables = [], []
    for each in found:
        numbers |= each.numbers
        notes += each.notes
        for name, value in each.headline.items():
            count = f"{each.loss.tokens:g} tokens" if name.endswith("/loss") else f"{each.given.count} answers"
            table.add_row(name, f"{value:.4f}", count)
        if each.given is None:
            continue
        if each.given.groups or each.blanked:
            tables.append(each.table())
        if answers is not None and jax.process_index() == 0:
            notes.append(f"answers are in {each.save(Path(answers), step)}")
    return Outcome(numbers=numbers, shown=(table, *tables, *notes))
