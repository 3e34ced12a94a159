"""Imports checkpoints of Hugging Face and exports ours to them, part by part.

An imported checkpoint is one of step 0 without optimizer state. It also holds the files that the Hugging Face folder
has beside its weights, for an export.
"""

from hetjax.checkpoint.huggingface.export_adapter import AdapterReport, export_adapter
from hetjax.checkpoint.huggingface.export_checkpoint import ExportReport, export_to_huggingface
from hetjax.checkpoint.huggingface.import_checkpoint import ImportReport, import_from_huggingface

__all__ = [
    "AdapterReport",
    "ExportReport",
    "ImportReport",
    "export_adapter",
    "export_to_huggingface",
    "import_from_huggingface",
]
