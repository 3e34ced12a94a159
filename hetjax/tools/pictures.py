"""Where a tool's pictures go."""

from __future__ import annotations

from pathlib import Path

from hetjax.errors import ConfigError

PICTURES = (".png", ".svg", ".pdf")


def output_path(out: str, suffixes: tuple[str, ...] = PICTURES) -> Path:
    """The path of a file to write, in a folder that exists then.

    Raises ConfigError for another suffix, and OSError for a folder that cannot be made.
    """
    path = Path(out)
    if path.suffix not in suffixes:
        raise ConfigError(f"the file '{out}' ends in '{path.suffix}'; give it one of the endings {', '.join(suffixes)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
