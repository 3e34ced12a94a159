"""Loggers of other services, by stand-ins with their interface: what they are given, and what is missing."""

import sys
from types import SimpleNamespace

import pytest

from hetjax.errors import ConfigError
from hetjax.training.metrics import MetricsLog
from hetjax.training.observers.loggers import check_loggers, open_loggers
from hetjax.training.run_folder import RunFolder


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for wandb and mlflow, and the list of what is asked of them."""
    made = []

    def noting(name, result=None):
        def call(*arguments, **options):
            made.append((name, *arguments, options))
            return result

        return call

    run = SimpleNamespace(id="w1", log=noting("wandb.log"), finish=noting("wandb.finish"))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=noting("wandb.init", run)))
    started = SimpleNamespace(info=SimpleNamespace(run_id="m1"))
    names = ("set_experiment", "log_dict", "log_metrics", "end_run")
    parts = {name: noting(f"mlflow.{name}") for name in names}
    mlflow = SimpleNamespace(start_run=noting("mlflow.start_run", started), **parts)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return made


def log_of(folder, done):
    settings = {"steps": 3}
    loggers = open_loggers(("wandb", "mlflow"), folder, name="run", project="p", settings=settings, done=done)
    return MetricsLog(RunFolder(folder), resume_step=done, loggers=loggers)


def test_a_run_logs_to_both_and_goes_on_under_the_same_ids(tmp_path, calls):
    log = log_of(tmp_path, 0)
    log.write({"step": 1, "loss": 2.0, "a->b": 3.0})
    log.close()
    init = {"project": "p", "name": "run", "dir": str(tmp_path), "config": {"steps": 3}, "id": None, "resume": "allow"}
    assert calls == [
        ("wandb.init", init),
        ("mlflow.set_experiment", "p", {}),
        ("mlflow.start_run", {"run_id": None, "run_name": "run"}),
        ("mlflow.log_dict", {"steps": 3}, "settings.json", {}),
        ("wandb.log", {"loss": 2.0, "a->b": 3.0}, {"step": 1}),
        ("mlflow.log_metrics", {"loss": 2.0, "a-_b": 3.0}, {"step": 1}),
        ("wandb.finish", {}),
        ("mlflow.end_run", {}),
    ]
    calls.clear()
    log_of(tmp_path, 1).close()
    assert calls[0][1]["id"] == "w1" and ("mlflow.start_run", {"run_id": "m1", "run_name": None}) in calls


def test_one_that_is_not_installed_is_named_with_the_command(monkeypatch):
    for name, command in (("wandb", "wandb"), ("mlflow", "mlflow-skinny"), ("tensorboard", "tensorboardX")):
        monkeypatch.setitem(sys.modules, "tensorboardX" if name == "tensorboard" else name, None)
        with pytest.raises(ConfigError, match=f"loggers names {name}, and .* is not installed: pip install {command},"):
            check_loggers((name,))
    with pytest.raises(ConfigError, match="names one twice"):
        check_loggers(("tensorboard", "tensorboard"))
