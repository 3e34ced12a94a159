"""The tools beside the trainer, one file each."""

from hetjax.commands import run_tool
from hetjax.tools.outcome import Outcome

__all__ = ["Outcome", "run_tool"]
