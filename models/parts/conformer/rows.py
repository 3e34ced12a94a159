"""The names of the rows of sound: its clips ride where a sequence does, so that devices share out whole clips."""

from hetjax.models.dims import Dims

CLIPS: Dims = ("batch", "seq")
"""[samples, clips]."""
ROWS: Dims = (*CLIPS, None)
"""[samples, clips, frames or tokens of a clip]."""
