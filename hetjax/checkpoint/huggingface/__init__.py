"""Imports checkpoints of Hugging Face and exports ours to them, part by part.

An imported checkpoint is one of step 0 without optimizer state. It also holds the files that the Hugging Face folder
has beside its weights, for an export.
"""

from hetjax.checkpoint.huggingface.export_checkpoint import ExportReport, from_checkpoint
from hetjax.checkpoint.huggingface.import_checkpoint import ImportReport, into_checkpoint

__all__ = ["ExportReport", "ImportReport", "from_checkpoint", "into_checkpoint"]
