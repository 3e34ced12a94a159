"""What a checkpoint says of itself, and whether it fits the model at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hetjax.errors import CheckpointError
from hetjax.state.module_arrays import WholeArray

FORMAT = 1

Description = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""{"shape", "dtype"} of a module's arrays by kind and path."""


def describe(kinds: Mapping[str, Mapping[str, WholeArray]]) -> dict[str, dict[str, Any]]:
    """Shape and dtype of a module's arrays by kind and path, as JSON data."""
    return {
        kind: {path: {"shape": list(whole.aval.shape), "dtype": str(whole.dtype)} for path, whole in found.items()}
        for kind, found in kinds.items()
    }


def description_of(step: int, modules: Mapping[str, Description], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The whole description. Raises TypeError when `extra` is not JSON."""
    description = {"format": FORMAT, "step": step, "modules": modules, "extra": dict(extra)}
    json.dumps(description)
    return description


def check_fits(what: str, description: Mapping[str, Any], now: Mapping[str, Description]) -> None:
    """Raise CheckpointError when a checkpoint, called `what`, is of another format, model or optimizer."""
    if description["format"] != FORMAT:
        raise CheckpointError(
            f"{what} has format {description['format']}, but this version reads format {FORMAT}; "
            "use the version that wrote it, or another run_dir"
        )
    saved = description["modules"]
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
