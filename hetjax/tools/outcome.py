"""What a tool hands to the command line, and what it shows meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

from rich.console import Console, RenderableType


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The numbers for `--json` (plain JSON values), and what is shown without it."""

    numbers: dict[str, Any]
    shown: tuple[RenderableType, ...]


@functools.cache
def stderr() -> Console:
    """Where progress goes, so that stdout holds results alone."""
    return Console(stderr=True)


def busy(doing: str) -> contextlib.AbstractContextManager[object]:
    """A spinner on stderr, where that is a terminal."""
    return stderr().status(doing) if stderr().is_terminal else contextlib.nullcontext()
