"""The checkpoints of a run: saved in the background, restored on any placement."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from hetjax.checkpoint.description import check_fits, describe, description_of
from hetjax.checkpoint.folder import CheckpointFolder
from hetjax.checkpoint.items import item_arrays, item_trees, place_in_item, read_item
from hetjax.checkpoint.layer_slices import read_runs
from hetjax.checkpoint.writer import Write, reason
from hetjax.errors import CheckpointError, ConfigError
from hetjax.state.module_arrays import WholeArray, join_module, split_module, whole_module
from hetjax.state.train_state import TrainState
from hetjax.trainer import Trainer

_log = logging.getLogger(__name__)


class Checkpoints:
    """The newest `keep` checkpoints of a run in a folder, written in the background.

    While one is written, `keep` others may lie beside it. A checkpoint that a killed job left
    unfinished does not count, and the next to save here removes it.

    Over several processes all of them make one and call its methods at the same steps, each with the
    stages that it runs. The folder must be on a file system that all of them share. What any number of
    processes wrote, any other number restores.

    Args:
        directory: the folder; the first `save` makes it.
        keep: how many to keep, at least 1.
        trainer: whose states are saved and restored.

    Raises ConfigError for `keep` below 1, and GraphError when a module's stages do not make up the whole module.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int, trainer: Trainer):
        if keep < 1:
            raise ConfigError(f"keep is {keep}; keep 1 checkpoint or more")
        self.directory = Path(directory).absolute()
        self.keep = keep
        self.trainer = trainer
        graph, stages, updates = trainer.graph, trainer.stages, trainer.updates
        self._modules = {module: whole_module(graph, module, stages, updates) for module in graph.order}
        self._description = {module: describe(kinds) for module, kinds in self._modules.items()}
        self._folder = CheckpointFolder(self.directory)
        self._write: Write | None = None
        # The step last saved or restored: on the disk, or on its way there.
        self._step: int | None = None

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None. Raises CheckpointError for an unreadable folder."""
        with _failing(f"cannot list the checkpoints in {self.directory}", "give a folder that can be read"):
            return max(self._folder.steps(), default=None)

    def save(self, state: TrainState, extra: Mapping[str, Any]) -> None:
        """Begin to save a state; returns when it is copied to the host, so that a step may consume it.

        `extra` is JSON data, which `restore` gives back; of several processes that of process 0 is kept.
        Saving once more what was last saved or restored does nothing. Raises TypeError when `extra` is not JSON, and
        CheckpointError when this checkpoint or the one before cannot be written, or when the folder has
        one of this step or a later one that this run did not start from.
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
        description = description_of(state.step, self._description, extra)
        trees, writers = {}, {}
        for module, kinds in self._modules.items():
            processes = self._processes(module)
            shapes = {kind: {path: whole.aval for path, whole in found.items()} for kind, found in kinds.items()}
            writers |= dict.fromkeys(item_trees(module, shapes), processes)
            if jax.process_index() in processes:
                trees |= item_trees(module, join_module(kinds, state))
        with self._writing(state.step):
            self._write = Write(
                self._folder, state.step, keep=self.keep, description=description, writers=writers, trees=trees
            )
        self._step = state.step

    def wait(self) -> None:
        """Wait until what was saved is a complete checkpoint. Raises CheckpointError when it could not be written."""
        write, self._write = self._write, None
        if write is not None:
            with self._writing(write.step):
                write.wait()

    def close(self) -> None:
        """`wait`; nothing is left in the background. Raises CheckpointError as `wait` does."""
        self.wait()

    def restore(self) -> tuple[TrainState, dict[str, Any]]:
        """The state and `extra` of the newest complete checkpoint, bit for bit, on the trainer's placement.

        A process gets the stages that it runs, and reads no more than they need. A module that was
        frozen then and trains now, or the reverse, has its weights cast to their dtype now and its
        optimizer state fresh or dropped, which is logged as a warning.

        Raises CheckpointError when there is no checkpoint, or it is damaged or of another model.
        """
        self.wait()
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"there is no checkpoint in {self.directory}; train first, or give another run_dir")
        what = f"the checkpoint of step {step} in {self.directory}"
        with self._reading(step):
            description = json.loads((self._folder.item(step, "description") / "metadata").read_text())
            check_fits(what, description, self._description)
        stages = {}
        for module, kinds in self._modules.items():
            saved = description["modules"][module]
            _warn_of_a_switch(what, module, kinds, saved)
            parts = [stage for stage in self.trainer.stages if stage.module == module and stage.is_local]
            if parts:
                arrays = self._read(step, module, {kind: kinds[kind] for kind in kinds if kind in saved})
                stages.update(split_module(kinds, arrays, parts, self.trainer.updates))
        self._step = step
        in_order = {stage.name: stages[stage.name] for stage in self.trainer.stages if stage.is_local}
        return TrainState(step=step, stages=in_order), description["extra"]

    def _read(
        self, step: int, module: str, kinds: Mapping[str, Mapping[str, WholeArray]]
    ) -> dict[str, dict[str, jax.Array]]:
        """A module's arrays of which this process holds a part, by kind and path."""
        local = {
            kind: {path: whole for path, whole in found.items() if whole.is_local} for kind, found in kinds.items()
        }
        avals = {
            kind: {path: whole.aval for path, whole in found.items() if not whole.in_runs}
            for kind, found in local.items()
        }
        with self._reading(step):
            trees = {
                item: read_item(self._folder.item(step, item), tree) for item, tree in item_trees(module, avals).items()
            }
            arrays = {kind: item_arrays(trees, module, kind) for kind in kinds}
            for kind, path, whole in ((k, p, w) for k, found in local.items() for p, w in found.items() if w.in_runs):
                item, keys = place_in_item(module, kind, path)
                arrays[kind][path] = read_runs(self._folder.item(step, item), keys, whole)
        return arrays

    def _processes(self, module: str) -> list[int]:
        """The processes that run a stage of a module."""
        meshes = [stage.mesh for stage in self.trainer.stages if stage.module == module]
        return sorted({device.process_index for mesh in meshes for device in mesh.devices.flat})

    def _reading(self, step: int) -> contextlib.AbstractContextManager[None]:
        return _failing(
            f"cannot read the checkpoint of step {step} in {self.directory}",
            f"delete {self.directory / str(step)} to go back to the checkpoint before it",
        )

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            with _failing(
                f"cannot write the checkpoint of step {step} to {self.directory}",
                "make room or give another run_dir, then resume from the checkpoint before it",
            ):
                yield
        except CheckpointError:
            self._step = None
            raise


@contextlib.contextmanager
def _failing(what: str, remedy: str) -> Iterator[None]:
    """Turns whatever Orbax and the file system raise, which is of many types, into CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{what}: {reason(error)}; {remedy}") from error


def _warn_of_a_switch(what: str, module: str, kinds: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    if ("opt_state" in kinds) != ("opt_state" in saved):
        was, now = ("frozen", "trains") if "opt_state" in kinds else ("trained", "is frozen")
        _log.warning(
            "%s: module '%s' %s then and %s now; its optimizer state %s",
            what, module, was, now, "starts fresh" if "opt_state" in kinds else "is dropped",
        )  # fmt: skip
