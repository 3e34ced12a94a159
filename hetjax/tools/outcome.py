"""The result of a tool, and the progress that it shows meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from rich.console import Console, RenderableType

Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"
"""A value that `json.dumps` writes as it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a tool.

    Attributes:
        numbers: what `--json` prints: one object, or several, each on a line.
        shown: what is printed without it, one after another.
    """

    numbers: Mapping[str, Json] | Sequence[Mapping[str, Json]]
    shown: tuple[RenderableType, ...]


@functools.cache
def stderr() -> Console:
    """Return the console for progress, on stderr so that stdout holds results alone."""
    return Console(stderr=True)


def busy(doing: str) -> contextlib.AbstractContextManager[object]:
    """Show a spinner on stderr, where that is a terminal, while the block runs."""
    return stderr().status(doing) if stderr().is_terminal else contextlib.nullcontext()
