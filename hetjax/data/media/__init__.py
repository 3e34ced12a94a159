"""Decode files of images, audio and videos to arrays in host memory.

`media_file` opens a file or a data URI, `file_structure` finds what is truncated or damaged before it is decoded, and
`limits` says how much one may hold; `image`, `audio` and `video` decode.
"""

from hetjax.data.media.audio import read_audio
from hetjax.data.media.image import read_image
from hetjax.data.media.limits import MediaLimits
from hetjax.data.media.media_file import DataUri, check_regular, is_source, located, printable
from hetjax.data.media.resampling import SAMPLE_RATE
from hetjax.data.media.video import Video, VideoSampling, read_video

__all__ = [
    "SAMPLE_RATE",
    "DataUri",
    "MediaLimits",
    "Video",
    "VideoSampling",
    "check_regular",
    "is_source",
    "located",
    "printable",
    "read_audio",
    "read_image",
    "read_video",
]
