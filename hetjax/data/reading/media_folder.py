"""Find media by the names that samples give them."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from hetjax.data.media.held_media import HeldMedia
from hetjax.errors import DataError

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaFolder:
    """Where the media of one sample are: `folder / name`, as with a path.

    A name is that of one of the `media` which the dataset itself holds, or a file's path relative to `folder`. Where
    the dataset holds all of them (`complete`), any other name is an error, which `where` opens. So is a path that leads
    out of `root`, the folder of the dataset, unless it is None: a dataset could have any file read otherwise. Links
    within it are followed: whoever keeps the folder has made them.
    """

    folder: Path
    where: str
    media: Mapping[str, HeldMedia] = dataclasses.field(default_factory=dict)
    complete: bool = False
    root: Path | None = None

    def __truediv__(self, name: str) -> Path | HeldMedia:
        """Return the media of a name. Raises DataError where there cannot be any."""
        if name in self.media:
            return self.media[name]
        if scheme := _SCHEME.match(name):
            if scheme.group().lower() == "file://":
                return self._within(Path(unquote(name[scheme.end() :])), name)
            raise DataError(
                f"{self.where}: '{name}' is not on this machine; download it, and give the path of the file"
            )
        if self.complete:
            held = ", ".join(self.media) or "none"
            raise DataError(f"{self.where}: '{name}' is not among the media of the sample; it has {held}")
        return self._within(self.folder / name, name)

    def _within(self, path: Path, name: str) -> Path:
        """Return a path, without steps up and back, that lies in `root`. Raises DataError for another."""
        if self.root is None:
            return path
        plain, root = Path(os.path.normpath(path.absolute())), self.root.absolute()
        # The folder by its own name, or by that of the folder that a link in its path leads to.
        if not plain.is_relative_to(os.path.normpath(root)) and not plain.is_relative_to(os.path.realpath(root)):
            raise DataError(
                f"{self.where}: '{name}' lies outside of the dataset's folder {self.root}; move it there, or let "
                "samples name any file with data.allow_outside: true"
            )
        return plain
