"""The files that pictures of the tools go to."""

from __future__ import annotations

from pathlib import Path

from hetjax.errors import ConfigError

PICTURES = (".png", ".svg", ".pdf")


def output_path(out: str, suffixes: tuple[str, ...] = PICTURES) -> Path:
    """Return the path of a file to write, and make its folder.

    Raises ConfigError for another suffix, and OSError for a folder that cannot be made.
    """
    path = Path(out)
    if path.suffix not in suffixes:
        raise ConfigError(f"the file '{out}' ends in '{path.suffix}'; give it one of the endings {', '.join(suffixes)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
