"""Checkpoints of whole modules, so that what one placement saved restores on any other (Orbax).

The checkpoint of step 7 is the folder "7" with these items:
    <module>.weights     {"params": ..., "buffers": ...}, each a tree by the whole module's paths;
    <module>.opt_state   the optimizer's tree, for a module that trains;
    description          JSON: format, step, shape and dtype of every array, and the caller's `extra`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from hetjax.errors import CheckpointError, ConfigError
from hetjax.state import TrainState
from hetjax.trainer import Trainer
from hetjax.whole import WholeArray, join_module, split_module, whole_module

FORMAT = 1

Description = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""{"shape", "dtype"} of a module's arrays by kind and path."""

_log = logging.getLogger(__name__)


class _NotOrbax(logging.Filter):
    """Drops Orbax's running commentary; what fails there is raised as CheckpointError, with its cause."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts


logging.getLogger("absl").addFilter(_NotOrbax())


class Checkpoints:
    """The newest `keep` checkpoints of a run in a folder, written in the background.

    While one is written, `keep` others may lie beside it. A checkpoint that a killed process left
    unfinished does not count, and the next process to save here removes it.

    Args:
        directory: the folder; the first `save` makes it.
        keep: how many to keep, at least 1.
        trainer: whose states are saved and restored.

    Raises ConfigError for `keep` below 1, and GraphError when a module's stages do not make up the
    whole module, or not in equal runs of rows.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int, trainer: Trainer):
        if keep < 1:
            raise ConfigError(f"keep is {keep}; keep 1 checkpoint or more")
        self.directory = Path(directory).absolute()
        self.keep = keep
        self.trainer = trainer
        graph, stages, updates = trainer.graph, trainer.stages, trainer.updates
        self._modules = {module: whole_module(graph, module, stages, updates) for module in graph.order}
        self._description = {module: _describe(kinds) for module, kinds in self._modules.items()}
        self._manager: ocp.CheckpointManager | None = None
        # The step last saved or restored: on the disk, or on its way there.
        self._step: int | None = None

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None. Raises CheckpointError for an unreadable folder."""
        with self._failing(f"cannot list the checkpoints in {self.directory}", "give a folder that can be read"):
            found = ocp.path.step.standard_name_format().find_all(self.directory) if self.directory.exists() else ()
            return max((checkpoint.step for checkpoint in found), default=None)

    def save(self, state: TrainState, extra: Mapping[str, Any]) -> None:
        """Begin to save a state; returns when it is copied to the host, so that a step may consume it.

        `extra` is JSON data, which `restore` gives back. Saving once more what was last saved or
        restored does nothing. Raises TypeError when `extra` is not JSON, and CheckpointError when this
        checkpoint or the one before cannot be written, or when the folder has one of this step or a
        later one that this run did not start from.
        """
        self.wait()
        if state.step == self._step:
            return
        latest = self.latest_step()
        if latest is not None and latest >= state.step:
            raise CheckpointError(
                f"cannot save step {state.step}: {self.directory} has a checkpoint of step {latest} from another run; "
                "resume from it, delete it, or give another run_dir"
            )
        description = {"format": FORMAT, "step": state.step, "modules": self._description, "extra": dict(extra)}
        json.dumps(description)
        items: dict[str, Any] = {"description": ocp.args.JsonSave(description)}
        for module, kinds in self._modules.items():
            for item, tree in _items(module, join_module(kinds, state)).items():
                items[item] = ocp.args.StandardSave(tree)
        with self._writing(state.step):
            self._manager = self._manager or self._open_manager()
            self._manager.save(state.step, args=ocp.args.Composite(**items))
        self._step = state.step

    def wait(self) -> None:
        """Wait until what was saved is on the disk. Raises CheckpointError when it could not be written."""
        if self._manager is not None:
            with self._writing(self._step):
                self._manager.wait_until_finished()

    def close(self) -> None:
        """`wait`, then stop the background threads. Raises CheckpointError as `wait` does."""
        try:
            self.wait()
        finally:
            self._discard_manager()

    def restore(self) -> tuple[TrainState, dict[str, Any]]:
        """The state and `extra` of the newest complete checkpoint, bit for bit, on the trainer's placement.

        A module that was frozen then and trains now, or the reverse, has its weights cast to their dtype
        now and its optimizer state fresh or dropped, which is logged as a warning.

        Raises CheckpointError when there is no checkpoint, or it is damaged or of another model.
        """
        self.wait()
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"there is no checkpoint in {self.directory}; train first, or give another run_dir")
        damaged = f"cannot read the checkpoint of step {step} in {self.directory}"
        remedy = f"delete {self.directory / str(step)} to go back to the checkpoint before it"
        options = ocp.CheckpointManagerOptions(read_only=True)
        with self._failing(damaged, remedy), ocp.CheckpointManager(self.directory, options=options) as manager:
            description = manager.restore(step, args=ocp.args.Composite(description=ocp.args.JsonRestore())).description
            targets = self._targets(description, f"the checkpoint of step {step} in {self.directory}")
            items = dict(manager.restore(step, args=ocp.args.Composite(**targets)).items()) if targets else {}
        stages = {}
        for module, kinds in self._modules.items():
            parts = [stage for stage in self.trainer.stages if stage.module == module]
            arrays = {kind: _arrays(items, module, kind) for kind in kinds if kind in description["modules"][module]}
            stages.update(split_module(kinds, arrays, parts, self.trainer.updates))
        self._step = step
        in_order = {stage.name: stages[stage.name] for stage in self.trainer.stages}
        return TrainState(step=step, stages=in_order), description["extra"]

    def _targets(self, description: Mapping[str, Any], what: str) -> dict[str, Any]:
        """What to read, and where to put it, after making sure that it fits. Raises CheckpointError."""
        if description["format"] != FORMAT:
            raise CheckpointError(
                f"{what} has format {description['format']}, but this version reads format {FORMAT}; "
                "use the version that wrote it, or another run_dir"
            )
        _check_same_model(what, description["modules"], self._description)
        targets = {}
        for module, kinds in self._modules.items():
            saved = description["modules"][module]
            if ("opt_state" in kinds) != ("opt_state" in saved):
                was, now = ("frozen", "trains") if "opt_state" in kinds else ("trained", "is frozen")
                _log.warning(
                    "%s: module '%s' %s then and %s now; its optimizer state %s",
                    what, module, was, now, "starts fresh" if "opt_state" in kinds else "is dropped",
                )  # fmt: skip
            avals = {
                kind: {path: whole.aval for path, whole in found.items()}
                for kind, found in kinds.items()
                if kind in saved
            }
            for item, tree in _items(module, avals).items():
                targets[item] = ocp.args.StandardRestore(tree)
        return targets

    def _open_manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(n=self.keep), cleanup_tmp_directories=True
        )
        return ocp.CheckpointManager(self.directory, options=options)

    def _discard_manager(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            # Orbax raises a failed write once more here; `_writing` has raised it already.
            with contextlib.suppress(Exception):
                manager.close()

    @contextlib.contextmanager
    def _writing(self, step: int | None) -> Iterator[None]:
        try:
            with self._failing(
                f"cannot write the checkpoint of step {step} to {self.directory}",
                "make room or give another run_dir, then resume from the checkpoint before it",
            ):
                yield
        except CheckpointError:
            self._step = None
            self._discard_manager()
            raise

    @contextlib.contextmanager
    def _failing(self, what: str, remedy: str) -> Iterator[None]:
        """Turns whatever Orbax and the file system raise, which is of many types, into CheckpointError."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "no reason given")
            raise CheckpointError(f"{what}: {type(error).__name__}: {reason}; {remedy}") from error


def _describe(kinds: Mapping[str, Mapping[str, WholeArray]]) -> dict[str, dict[str, Any]]:
    return {
        kind: {path: {"shape": list(whole.aval.shape), "dtype": str(whole.dtype)} for path, whole in found.items()}
        for kind, found in kinds.items()
    }


def _items(module: str, arrays: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A module's arrays, or their shapes, as the trees of its items; Orbax writes no empty ones."""
    trees = {kind: unflatten_dict(flat, sep="/") for kind, flat in arrays.items() if flat}
    opt_state = trees.pop("opt_state", {})
    return {item: tree for item, tree in ((f"{module}.weights", trees), (f"{module}.opt_state", opt_state)) if tree}


def _arrays(items: Mapping[str, Any], module: str, kind: str) -> dict[str, Any]:
    """The reverse of `_items`, for one kind."""
    tree = (
        items.get(f"{module}.opt_state", {})
        if kind == "opt_state"
        else items.get(f"{module}.weights", {}).get(kind, {})
    )
    return flatten_dict(tree, sep="/")


def _check_same_model(what: str, saved: Mapping[str, Description], now: Mapping[str, Description]) -> None:
    for module in sorted(saved.keys() ^ now.keys()):
        holder, other = ("the checkpoint", "the model") if module in saved else ("the model", "the checkpoint")
        raise CheckpointError(
            f"{what} is of another model: {holder} has module '{module}', which {other} lacks; "
            "use the config that it was written with, or another run_dir"
        )
    for module in now:
        switched = ("opt_state" in saved[module]) != ("opt_state" in now[module])
        for kind in now[module]:
            if kind not in saved[module]:
                continue
            difference = _difference(saved[module][kind], now[module][kind], dtypes=not switched)
            if difference is not None:
                of = "optimizer" if kind == "opt_state" else "model"
                raise CheckpointError(
                    f"{what} is of another {of}: module '{module}': {kind} {difference}; "
                    "use the config that it was written with, or another run_dir"
                )


def _difference(saved: Mapping[str, Any], now: Mapping[str, Any], *, dtypes: bool) -> str | None:
    """The first array that differs, in words."""
    for path in [*now, *saved]:
        for holder, here, there in (("is only in the model", now, saved), ("is only in the checkpoint", saved, now)):
            if path not in there:
                return f"{path} of shape {tuple(here[path]['shape'])} {holder}"
        for key in ("shape", "dtype") if dtypes else ("shape",):
            if saved[path][key] != now[path][key]:
                return f"{path} has {key} {saved[path][key]} in the checkpoint, but {now[path][key]} in the model"
    return None
