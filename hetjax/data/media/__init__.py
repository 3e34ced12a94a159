"""Files that hold pictures, sound and film, to arrays in host memory."""

from hetjax.media.audio import SAMPLE_RATE, read_audio
from hetjax.media.image import read_image
from hetjax.media.video import Video, VideoSampling, read_video

__all__ = ["SAMPLE_RATE", "Video", "VideoSampling", "read_audio", "read_image", "read_video"]
