"""Read datasets by index: a file a format, and the files that a folder or a glob has.

`formats` chooses the format, `source` says what one gives: a `Line` for each sample, its media not yet read.
`media_folder` finds media by the names that samples give them.
"""

from hetjax.data.reading.formats import FORMATS, files_of, open_files, register_format
from hetjax.data.reading.joined import JoinedSource
from hetjax.data.reading.jsonl import JsonlSource
from hetjax.data.reading.media_folder import MediaFolder
from hetjax.data.reading.source import Line, Source

__all__ = [
    "FORMATS",
    "JoinedSource",
    "JsonlSource",
    "Line",
    "MediaFolder",
    "Source",
    "files_of",
    "open_files",
    "register_format",
]
