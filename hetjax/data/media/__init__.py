"""Decode files of images, audio and videos to arrays in host memory."""

from hetjax.data.media.audio import SAMPLE_RATE, read_audio
from hetjax.data.media.image import read_image
from hetjax.data.media.video import Video, VideoSampling, read_video

__all__ = ["SAMPLE_RATE", "Video", "VideoSampling", "read_audio", "read_image", "read_video"]
