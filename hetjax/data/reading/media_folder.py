"""Find media by the names that samples give them."""

from __future__ import annotations

import dataclasses
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
    the dataset holds all of them (`complete`), any other name is an error, which `where` opens.
    """

    folder: Path
    where: str
    media: Mapping[str, HeldMedia] = dataclasses.field(default_factory=dict)
    complete: bool = False

    def __truediv__(self, name: str) -> Path | HeldMedia:
        """Return the media of a name. Raises DataError where there cannot be any."""
        if name in self.media:
            return self.media[name]
        if scheme := _SCHEME.match(name):
            if scheme.group().lower() == "file://":
                return Path(unquote(name[scheme.end() :]))
            raise DataError(
                f"{self.where}: '{name}' is not on this machine; download it, and give the path of the file"
            )
        if self.complete:
            held = ", ".join(self.media) or "none"
            raise DataError(f"{self.where}: '{name}' is not among the media of the sample; it has {held}")
        return self.folder / name
