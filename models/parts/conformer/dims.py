"""Name the leading dims of audio: clips ride on the axes of a sequence, so that devices share out whole clips."""

from hetjax.models.dims import Dims

CLIPS: Dims = ("batch", "seq")
"""[samples, clips]."""
TOKENS: Dims = (*CLIPS, None)
"""[samples, clips, frames or tokens of a clip]."""
