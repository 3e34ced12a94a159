"""Saves the checkpoints of a run in the background, and restores them on any placement."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax

from hetjax.checkpoint.description import (
    DESCRIPTION_FILE,
    Description,
    ModuleDescription,
    check_fits,
    describe_module,
)
from hetjax.checkpoint.folder import CheckpointFolder
from hetjax.checkpoint.integrity import Integrity
from hetjax.checkpoint.items import Saved, Tree, item_arrays, item_trees, place_in_item, read_item
from hetjax.checkpoint.layer_slices import read_slices
from hetjax.checkpoint.writer import Write, reason
from hetjax.cluster.agree import gather
from hetjax.errors import CheckpointError, ConfigError
from hetjax.graph import ModuleGraph
from hetjax.models.json_values import Json
from hetjax.stages.flat_state import flatten_module
from hetjax.state.module_state import JoinedArrays, Kind, StateArrays, find_state, join_state, split_state
from hetjax.state.train_state import StageState, TrainState
from hetjax.state.whole_array import LayerSlices
from hetjax.trainer import Trainer

_log = logging.getLogger(__name__)

RESTORE_SECONDS = 6 * 3600.0
"""How long the slowest process may read longer than the fastest; the watchdog knows of one that died."""


class Checkpoints:
    """Writes checkpoints of a run into a folder in the background, and keeps the newest `keep` of them.

    While one is written, `keep` others may lie beside it. A checkpoint that a killed job left
    unfinished does not count, and the next save into the folder removes it.

    Over several processes all of them make one and call its methods at the same steps, each with the
    stages that it runs. The folder must be on a file system that all of them share. A checkpoint that any number of
    processes wrote restores in any other number.

    Of a module that trains by low-rank maps (`hetjax.models.lora`) these alone are written: `restore` takes its frozen
    weights from where they came.

    Args:
        directory: the folder; the first `save` makes it.
        keep: how many to keep, at least 1.
        trainer: the trainer of the states that are saved and restored.

    Raises ConfigError for `keep` below 1, and GraphError when a module's stages do not make up the whole module.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int, trainer: Trainer):
        if keep < 1:
            raise ConfigError(f"keep is {keep}; keep 1 checkpoint or more")
        self.directory = Path(directory).absolute()
        self.keep = keep
        self.trainer = trainer
        graph, stages, updates = trainer.graph, trainer.stages, trainer.updates
        found = {module: find_state(graph, module, stages, updates) for module in graph.order}
        self._modules = {module: _without_frozen(graph, module, kinds) for module, kinds in found.items()}
        self._left_out = [
            module for module in graph.order if len(self._modules[module]["params"]) < len(found[module]["params"])
        ]
        self._described = {module: describe_module(kinds) for module, kinds in self._modules.items()}
        self._folder = CheckpointFolder(self.directory)
        self._write: Write | None = None
        # The step last saved or restored: on the disk, or on its way to it.
        self._step: int | None = None

    def latest_step(self) -> int | None:
        """Return the step of the newest complete checkpoint, or None.

        Raises CheckpointError for an unreadable folder.
        """
        with self._listing():
            return max(self._folder.steps(), default=None)

    def save(self, state: TrainState, extra: Mapping[str, Json], *, keep_beside: int | None = None) -> None:
        """Begin to save a state; return when it is copied to the host, so that a step may consume it.

        `extra` is JSON data, which `restore` gives back; of several processes that of process 0 is kept. `keep_beside`
        is a step, the best one so far, whose checkpoint is kept beside the newest.
        Saving the step that was last saved or restored once more does nothing. Raises TypeError when `extra` is not
        JSON, and CheckpointError when this checkpoint or the one before cannot be written, or when the folder has
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
        description = Description(step=state.step, modules=self._described, extra=extra).to_json()
        trees: dict[str, Tree[Saved]] = {}
        writers: dict[str, list[int]] = {}
        for module, kinds in self._modules.items():
            processes = self._processes(module)
            shapes = {kind: {path: whole.aval for path, whole in found.items()} for kind, found in kinds.items()}
            writers |= dict.fromkeys(item_trees(module, shapes), processes)
            if jax.process_index() in processes:
                trees |= item_trees(module, join_state(kinds, state))
        with self._writing(state.step):
            self._write = Write(
                self._folder,
                state.step,
                keep=self.keep,
                keep_beside=keep_beside,
                description=description,
                writers=writers,
                trees=trees,
            )
        self._step = state.step

    def wait(self) -> None:
        """Wait until the last save is a complete checkpoint. Raises CheckpointError when it could not be written."""
        write, self._write = self._write, None
        if write is not None:
            with self._writing(write.step):
                write.wait()

    def is_complete(self, step: int) -> bool:
        """Return whether the checkpoint of a step is complete, on the disk as this process sees it."""
        return self._folder.is_complete(step)

    def close(self) -> None:
        """Wait, so that nothing is left in the background. Raises CheckpointError as `wait` does."""
        self.wait()

    def restore(self, base: Callable[[], TrainState] | None = None) -> tuple[TrainState, Mapping[str, Json]]:
        """Return the state and `extra` of the newest whole checkpoint, bit for bit, on the trainer's placement.

        A process gets the stages that it runs, and reads no more than they need, beside its share of the files, whose
        checksums it compares. A damaged checkpoint is renamed to "STEP.damaged" and the one before is restored, which
        is logged as a warning. A module that was frozen then and trains now, or the reverse, has its weights cast to
        their dtype now and its optimizer state fresh or dropped, which is logged as well.

        `base` makes the first state again, as `lambda: trainer.init(seed, warm_start=...)`: the frozen weights of
        modules with low-rank maps are its. Raises ConfigError without one where there are such modules.

        Raises CheckpointError when there is no checkpoint, none is whole, or it is of another model.
        """
        self.wait()
        if self._left_out and base is None:
            raise ConfigError(
                f"the checkpoints in {self.directory} hold the low-rank maps of {', '.join(self._left_out)}, not the "
                "weights beside them; give restore what makes these, lambda: trainer.init(seed, warm_start=...)"
            )
        with self._listing():
            steps, incomplete = self._folder.steps(), self._folder.incomplete()
        if incomplete:
            _log.warning("%s: no checkpoints, without a description: %s", self.directory, ", ".join(incomplete))
        damaged: dict[int, str] = {}
        for step in reversed(steps):
            integrity = Integrity(self._folder.path(step))
            damage = _of_any_process(integrity.start())
            restored = self._restore(step, integrity, base) if damage is None else damage
            if not isinstance(restored, str):
                self._set_aside(damaged)
                self._step = step
                return restored
            damaged[step] = restored
        if not steps:
            raise CheckpointError(f"there is no checkpoint in {self.directory}; train first, or give another run_dir")
        # They stay where they are: without them the same command would begin anew, over what the run has logged.
        listed = "; ".join(f"step {step}: {damage}" for step, damage in damaged.items())
        raise CheckpointError(
            f"every checkpoint in {self.directory} is damaged ({listed}); put back copies, or give another run_dir"
        )

    def _restore(
        self, step: int, integrity: Integrity, base: Callable[[], TrainState] | None
    ) -> tuple[TrainState, Mapping[str, Json]] | str:
        """Return a checkpoint, or how it is damaged. Raises CheckpointError as `restore` does."""
        name = f"the checkpoint of step {step} in {self.directory}"
        if not integrity.is_known:
            _log.warning("%s has no checksums, as an earlier version wrote it: damage would not be found", name)
        with self._reading(step):
            text = self._folder.item(step, DESCRIPTION_FILE).read_text()
            description = Description.from_json(text, name, "use the version that wrote it, or another run_dir")
            check_fits(name, description.modules, self._described)
        stages: dict[str, StageState] = {}
        first = self._first_of_left_out(base) if self._left_out else {}
        failure: CheckpointError | None = None
        try:
            for module, kinds in self._modules.items():
                saved = description.modules[module]
                _warn_of_a_switch(name, module, self._described[module], saved)
                parts = [stage for stage in self.trainer.stages if stage.module == module and stage.is_local]
                if parts:
                    arrays = self._read(step, module, {kind: kinds[kind] for kind in kinds if kind in saved})
                    others = first if module in self._left_out else {}
                    stages.update(split_state(kinds, arrays, parts, self.trainer.updates, others))
        except CheckpointError as error:
            failure = error  # damage, if its checksums say so, in this process or another
        damage = _of_any_process(integrity.finish())
        if damage is not None:
            return damage
        if failure is not None:
            raise failure
        in_order = {stage.name: stages[stage.name] for stage in self.trainer.stages if stage.is_local}
        return self.trainer.known(TrainState(step=step, stages=in_order)), description.extra

    def _first_of_left_out(self, base: Callable[[], TrainState]) -> dict[str, StageState]:
        """The frozen weights that checkpoints leave out, by stage; nothing else of the first state stays."""
        state, kept = base(), {}
        for stage in self.trainer.stages:
            if stage.is_local and stage.module in self._left_out:
                whole = state.stages[stage.name]
                params = {path: array for path, array in whole.params.items() if path not in stage.trained}
                kept[stage.name] = StageState(params=params, buffers={}, opt_state=None)
        return kept

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        """Rename damaged checkpoints, and say so. Every process calls it."""
        for step, damage in damaged.items() if jax.process_index() == 0 else ():
            with _failing(
                f"the checkpoint of step {step} in {self.directory} is damaged ({damage}) and cannot be renamed",
                f"move {self._folder.path(step)} elsewhere to go back to the checkpoint before it",
            ):
                path = self._folder.set_aside(step)
            _log.warning(
                "the checkpoint of step %d is damaged: %s; it is kept as %s, and the run goes on from the one before",
                step, damage, path,
            )  # fmt: skip
        if damaged:
            gather("", timeout=RESTORE_SECONDS)

    def _read(self, step: int, module: str, kinds: StateArrays) -> JoinedArrays:
        """A module's arrays of which this process holds a part, by kind and path."""
        local = {
            kind: {path: whole for path, whole in found.items() if whole.is_local} for kind, found in kinds.items()
        }
        avals = {
            kind: {path: whole.aval for path, whole in found.items() if not whole.is_sliced}
            for kind, found in local.items()
        }
        with self._reading(step):
            trees = {
                item: read_item(self._folder.item(step, item), tree) for item, tree in item_trees(module, avals).items()
            }
            arrays: dict[Kind, dict[str, jax.Array | LayerSlices]] = {
                kind: item_arrays(trees, module, kind) for kind in kinds
            }
            for kind, found in local.items():
                for path, whole in found.items():
                    if whole.is_sliced:
                        place = place_in_item(module, kind, path)
                        arrays[kind][path] = read_slices(self._folder.item(step, place.item), place.name, whole)
        return arrays

    def _processes(self, module: str) -> list[int]:
        """The processes that run a stage of a module."""
        meshes = [stage.mesh for stage in self.trainer.stages if stage.module == module]
        return sorted({device.process_index for mesh in meshes for device in mesh.devices.flat})

    def _listing(self) -> contextlib.AbstractContextManager[None]:
        return _failing(f"cannot list the checkpoints in {self.directory}", "give a folder that can be read")

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
def _failing(failure: str, remedy: str) -> Iterator[None]:
    """Turn any error of Orbax and the file system, which raise many types, into CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{failure}: {reason(error)}; {remedy}") from error


def _without_frozen(graph: ModuleGraph, module: str, kinds: StateArrays) -> StateArrays:
    """What a checkpoint holds of a module: not what is frozen beside low-rank maps."""
    frozen = flatten_module(graph.abstract(module))[0].frozen
    return {**kinds, "params": {path: whole for path, whole in kinds["params"].items() if path not in frozen}}


def _of_any_process(damage: str | None) -> str | None:
    """Return the damage that the first process found that found any. Every process calls it."""
    return next(filter(None, gather(damage or "", timeout=RESTORE_SECONDS)), None)


def _warn_of_a_switch(name: str, module: str, now: ModuleDescription, saved: ModuleDescription) -> None:
    if ("opt_state" in now) != ("opt_state" in saved):
        trains = "opt_state" in now
        before, after = ("frozen", "trains") if trains else ("trained", "is frozen")
        _log.warning(
            "%s: module '%s' %s then and %s now; its optimizer state %s",
            name, module, before, after, "starts fresh" if trains else "is dropped",
        )  # fmt: skip
