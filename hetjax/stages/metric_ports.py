"""Metrics of a module on their way out of its programs: scalars beside its other outputs, by ports of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from hetjax.errors import GraphError
from hetjax.models.metrics import Mean, Sum
from hetjax.stages.flat_state import Arrays

_BETWEEN = ":"


def is_metric(port: str) -> bool:
    """Return whether a port holds a part of a metric: "accuracy:total" or "accuracy:count"."""
    return _BETWEEN in port


def metrics_apart(outputs: Mapping[str, jax.Array | Sum | Mean], *, module: str) -> Arrays:
    """Return a module's outputs with each part of a metric at a port of its own.

    Raises GraphError for a part that is no scalar, and for an output with a colon in its name.
    """
    found: Arrays = {}
    for name, value in outputs.items():
        if is_metric(name):
            raise GraphError(f"module '{module}': its output {name!r} has a colon in its name; name it otherwise")
        if not isinstance(value, Sum | Mean):
            found[name] = value
            continue
        for field in dataclasses.fields(value):
            part = jnp.asarray(getattr(value, field.name))
            if part.shape:
                raise GraphError(
                    f"module '{module}': the {field.name} of its metric '{name}' has shape {part.shape}; give a "
                    "scalar, the sum over the samples at hand"
                )
            found[f"{name}{_BETWEEN}{field.name}"] = part
    return found


def combined(parts: Arrays) -> Arrays:
    """Return the value of each metric by its name, from the sums of its parts over the batch; to be traced."""
    totals = {port.partition(_BETWEEN)[0]: total for port, total in parts.items() if port.endswith("total")}
    counts = {port.partition(_BETWEEN)[0]: count for port, count in parts.items() if port.endswith("count")}
    for name, count in counts.items():
        totals[name] = totals[name] / jnp.where(count == 0, 1, count)
    return totals
