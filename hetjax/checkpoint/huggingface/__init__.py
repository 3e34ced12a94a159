"""Checkpoints of Hugging Face into ours and back, part by part.

A converted checkpoint is one of step 0 without optimizer state, with what a Hugging Face folder has beside its weights
inside it.
"""

from hetjax.checkpoint.huggingface.export_checkpoint import from_checkpoint
from hetjax.checkpoint.huggingface.import_checkpoint import into_checkpoint

__all__ = ["from_checkpoint", "into_checkpoint"]
