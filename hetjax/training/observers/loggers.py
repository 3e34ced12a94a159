"""Log the metrics of a run to TensorBoard, Weights & Biases or MLflow, where these are installed."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol

from hetjax.errors import ConfigError

LoggerName = Literal["tensorboard", "wandb", "mlflow"]
IDS_FILE = "logger_runs.json"
"""In the run's folder: under which id each service knows the run, so that it goes on there."""

_PACKAGES: dict[LoggerName, tuple[str, str]] = {
    "tensorboard": ("tensorboardX", "tensorboardX"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
}
"""For each logger the module that it imports, and the package that has it."""


# Letters that MLflow refuses in the name of a metric, as groups of answers may have.
_NOT_IN_MLFLOW = re.compile(r"[^\w\-. :/]", re.ASCII)


class Logger(Protocol):
    """Where metrics are logged to."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step."""

    def close(self) -> None:
        """Write out what is buffered."""


def check_loggers(names: tuple[LoggerName, ...]) -> None:
    """Raise ConfigError for a logger that is not installed, or named twice."""
    if len(set(names)) < len(names):
        raise ConfigError(f"loggers names one twice: {', '.join(names)}")
    for name in names:
        _module(name)


def open_loggers(
    names: tuple[LoggerName, ...], folder: Path, *, name: str, project: str, settings: Mapping[str, object], done: int
) -> list[Logger]:
    """Open loggers for a run.

    Args:
        names: which.
        folder: the run's folder.
        name: name of the run.
        project: what the services group it under.
        settings: the settings of the run.
        done: steps done before; TensorBoard drops what it has of later ones.

    Raises ConfigError for one that is not installed.
    """
    opened: list[Logger] = []
    for each in names:
        module = _module(each)
        if each == "tensorboard":
            opened.append(_TensorBoard(module, folder / "tensorboard", done))
        elif each == "wandb":
            opened.append(_WandB(module, folder, name, project, settings))
        else:
            opened.append(_MLflow(module, folder, name, project, settings))
    return opened


def _module(name: LoggerName) -> ModuleType:
    module, package = _PACKAGES[name]
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f"loggers names {name}, and {module} is not installed: pip install {package}, or leave it out"
        ) from None


class _TensorBoard:
    def __init__(self, module: ModuleType, folder: Path, done: int):
        self._writer = module.SummaryWriter(str(folder), purge_step=done + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, module: ModuleType, folder: Path, name: str, project: str, settings: Mapping[str, object]):
        # What is logged once more, after a checkpoint that a run goes on from, W&B drops by itself.
        self._run = module.init(
            project=project,
            name=name,
            dir=str(folder),
            config=dict(settings),
            id=_known_id(folder, "wandb"),
            resume="allow",
        )
        _keep_id(folder, "wandb", self._run.id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, module: ModuleType, folder: Path, name: str, project: str, settings: Mapping[str, object]):
        known = _known_id(folder, "mlflow")
        self._mlflow = module
        if known is None:
            module.set_experiment(project)
        run = module.start_run(run_id=known, run_name=None if known else name)
        _keep_id(folder, "mlflow", run.info.run_id)
        if known is None:
            module.log_dict(dict(settings), "settings.json")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        named = {_NOT_IN_MLFLOW.sub("_", name): value for name, value in metrics.items()}
        self._mlflow.log_metrics(named, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


def _known_id(folder: Path, service: str) -> str | None:
    path = folder / IDS_FILE
    return json.loads(path.read_text()).get(service) if path.exists() else None


def _keep_id(folder: Path, service: str, run: str) -> None:
    path = folder / IDS_FILE
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, service: run}) + "\n")
