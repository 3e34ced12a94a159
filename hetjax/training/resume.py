"""Compare the settings and the data of a run that goes on with those that it began with."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import yaml

from hetjax.checkpoint.folder import CheckpointFolder
from hetjax.checkpoint.frozen_bases import Stamps, changed_bases
from hetjax.config.plain_yaml import plain_yaml
from hetjax.data import DataConfig
from hetjax.data.reading import files_of
from hetjax.data.reading.fingerprint import fingerprint
from hetjax.data.source_config import train_sources
from hetjax.errors import CheckpointError, ConfigError
from hetjax.training.best_checkpoint import BEST_FILE
from hetjax.training.observers.loggers import IDS_FILE
from hetjax.training.observers.profile import FOLDER as PROFILE_FOLDER
from hetjax.training.run_folder import RunFolder

Resume = Literal["same", "changed", "never"]

SETTINGS_FILE = "config.yaml"
BEGUN_FILE = "overwritten"
"""Says which command overwrote the run that was there before."""

FREE = (
    "placement", "schedule", "microbatches", "remat", "offload", "kernels", "fake_devices",
    "steps", "eval", "data.train", "data.eval", "data.epochs", "data.max_bad_share", "data.workers",
    "data.allow_outside", "bad_steps", "checkpoint_every", "keep_checkpoints", "best_checkpoint",
    "profile_every", "log_every", "log_every_process", "profile", "loggers", "logger_project", "report",
    "compilation_cache",
    "step_timeout", "peer_timeout", "join_timeout", "name", "run_dir", "demo_data", "warm_start", "resume", "overwrite",
)  # fmt: skip
"""Settings, or groups of them, that may change in the middle of a run: they leave what is learned as it is, but for the
rounding of sums, or concern what is measured and kept. `warm_start` is read at the beginning alone. Files of
`data.train` may have moved: the stream of samples compares its sources itself."""

_OPEN = {"init_args", "learning_rate_scale", "groups", "changes", "lora", "encoders", "template_options", "others"}
"""Settings whose names within them are not those of a version."""
_SILENT = ("name", "run_dir", "resume", "overwrite")


class Change(NamedTuple):
    """A setting that is another now: its dotted name, its values then and now, whether it did not exist then."""

    name: str
    before: object
    now: object
    is_new: bool = False

    @property
    def is_free(self) -> bool:
        """Whether it may change in the middle of a run; what earlier versions had not, nobody changed."""
        return self.is_new or any(self.name == free or self.name.startswith(f"{free}.") for free in FREE)

    def __str__(self) -> str:
        """Name it with both values."""
        return f"{self.name}: {self.before!r} -> {self.now!r}"


def start_or_resume(folder: RunFolder, resolved: str, resume: Resume, *, overwrite: bool) -> list[str]:
    """Decide whether a run may use its folder as it is; returns lines about settings that changed.

    Args:
        folder: The run's folder.
        resolved: Its settings now, as YAML.
        resume: "same" goes on where what is learned stays as it was set, "changed" with any settings, "never" refuses
            to go on.
        overwrite: Whether a run that is there is deleted.

    Raises ConfigError where the settings of the experiment changed, or nothing was to be resumed, CheckpointError where
    what was there cannot be gone on from.
    """
    checkpoints = CheckpointFolder(folder.path / "checkpoints")
    steps, lost = checkpoints.steps(), checkpoints.lost()
    if overwrite and (steps or lost):
        return [_overwrite(folder, resolved, steps)]
    if lost and not steps:
        raise CheckpointError(
            f"{folder.path} holds no whole checkpoint, but {', '.join(lost)}, which were some; put back a copy, give "
            "another run_dir, or --overwrite true to begin anew"
        )
    if not steps:
        return []
    if resume == "never":
        raise ConfigError(
            f"{folder.path} holds a run with a checkpoint of step {steps[-1]}, and resume is never; give another "
            "run_dir, or --overwrite true to delete it"
        )
    path = folder.path / SETTINGS_FILE
    if not path.exists():
        return [f"{path} is missing, so that no settings are compared with those of the run"]
    before, now = _read(path), yaml.safe_load(resolved)
    changes = [change for change in _changes(before, now) if change.name not in _SILENT]
    changes += _schema_changes(before, now)
    # The weights beside low-rank maps are read each time, and are in no checkpoint.
    is_read = bool(now.get("model", {}).get("lora"))
    refused = [str(each) for each in changes if not each.is_free or (is_read and each.name.startswith("warm_start"))]
    if refused and resume == "same":
        raise ConfigError(
            f"the run in {folder.path} had other settings: {'; '.join(refused)}; give --resume changed to go on with "
            "the new ones, another run_dir to begin anew, or the old ones"
        )
    return [f"changed since the run was started: {change}" for change in changes]


def _schema_changes(before: object, now: object) -> Iterator[Change]:
    """Yield what reads the samples of a source, where it is another now: a schema of one's own, or columns."""
    old, new = _readers(before), _readers(now)
    for label in old.keys() & new.keys():
        for name, value in old[label].items():
            if value != new[label][name]:
                yield Change(f"{name} of '{label}'", value, new[label][name])


def _readers(settings: object) -> dict[str, dict[str, object]]:
    """Return the schema and the columns of each source of training samples, by its name or path, as written down."""
    data = settings.get("data") if isinstance(settings, Mapping) else None
    train = data.get("train") if isinstance(data, Mapping) else None
    sources = [each for each in (train if isinstance(train, list) else [train]) if isinstance(each, Mapping)]
    return {
        str(each.get("name") or each.get("path")): {"schema": each.get("schema"), "columns": each.get("columns")}
        for each in sources
    }


def fingerprints(data: DataConfig) -> dict[str, str]:
    """Return the fingerprint of each source of training samples, by its name. Raises DataError or OSError."""
    return {source.label: fingerprint(files_of(source.path, source.split)) for source in train_sources(data.train)}


def compare_datasets(before: Mapping[str, str], now: Mapping[str, str], resume: Resume) -> list[str]:
    """Return lines about sources whose files hold something else than when the checkpoint was written.

    Raises ConfigError for them where `resume` is "same".
    """
    left, new = [name for name in before if name not in now], [name for name in now if name not in before]
    moved = {left[0]: new[0]} if len(left) == len(new) == 1 else {}  # as the stream of samples takes it
    edited = [f"'{name}'" for name in before if now.get(moved.get(name, name), before[name]) != before[name]]
    if not edited:
        return []
    if resume == "same":
        raise ConfigError(
            f"the training samples of {', '.join(edited)} are not those of the run so far: the files were edited; give "
            "--resume changed to go on with the new ones, another run_dir to begin anew, or the old ones"
        )
    return [f"changed since the run was started: the files of {', '.join(edited)}"]


def compare_bases(before: Stamps, now: Stamps, resume: Resume) -> list[str]:
    """Return lines about weights beside low-rank maps that are others now. Raises ConfigError as `compare_datasets`."""
    others = changed_bases(before, now)
    if not others:
        return []
    if resume == "same":
        raise ConfigError(
            f"the weights of {', '.join(others)} in warm_start are not those beside which the low-rank maps were "
            "trained; put those back, or give --resume changed to go on beside the new ones"
        )
    return [f"changed since the run was started: the weights of {', '.join(others)} beside low-rank maps"]


def _read(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}, the settings of the run so far, cannot be read: {error}; delete it to compare nothing"
        ) from None


def _changes(before: object, now: object, name: str = "") -> Iterator[Change]:
    """Yield every setting that differs. A group that only one of them has differs as a whole.

    All settings of a version are written down, so that one that is missing is new since then, and is left out where it
    is empty; but for those whose names users choose (`_OPEN`).
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*before, *now)):
            inner = f"{name}.{key}" if name else str(key)
            if key in before or name.startswith("placement"):
                yield from _changes(before.get(key), now.get(key), inner)
            elif _OPEN.intersection(name.split(".")):
                yield Change(inner, None, now[key])
            elif now[key]:
                yield Change(inner, None, now[key], is_new=True)
    elif before != now:
        yield Change(name, before, now)


def settings_to_keep(resolved: str) -> str:
    """Return the settings that a run's folder keeps: by them the run goes on, and is neither deleted nor changed."""
    return plain_yaml({**yaml.safe_load(resolved), "resume": "same", "overwrite": False})


def _overwrite(folder: RunFolder, resolved: str, steps: list[int]) -> str:
    """Delete a run, unless this very command began it: a command that is started again goes on. Returns what to say."""
    begun, mark = folder.path / BEGUN_FILE, hashlib.sha256(resolved.encode()).hexdigest()
    if steps and begun.exists() and begun.read_text() == mark:
        return f"overwrite: this command began the run in {folder.path}, which goes on; delete the folder to begin anew"
    came = f", which had come to step {steps[-1]}," if steps else ""
    _delete(folder)
    begun.write_text(mark)
    return f"overwrite: the run in {folder.path}{came} is deleted"


def _delete(folder: RunFolder) -> None:
    """Delete what a run left in its folder; not what others may have put there. Raises OSError."""
    for name in ("checkpoints", "tensorboard", "answers", PROFILE_FOLDER):
        doomed = folder.path / f"{name}.deleted"
        shutil.rmtree(doomed, ignore_errors=True)
        if (folder.path / name).exists():
            # Renamed first: what is deleted in part is no run any more.
            (folder.path / name).rename(doomed)
            shutil.rmtree(doomed)
    for name in ("metrics.jsonl", "loss.png", "report.html", BEST_FILE, IDS_FILE, SETTINGS_FILE):
        (folder.path / name).unlink(missing_ok=True)
