"""How an error that the user can mend is told: its message alone, and exit code 2."""

from __future__ import annotations

import errno

from rich.console import Console
from rich.text import Text

from hetjax.errors import HetjaxError
from hetjax.meshes import PlacementError
from hetjax.models import ModelError

USER_ERRORS = (HetjaxError, PlacementError, ModelError, OSError)
USER_ERROR_CODE = 2


def message_of(error: Exception) -> str:
    """What to tell of one of `USER_ERRORS`."""
    if not isinstance(error, OSError):
        return str(error)
    where = f": {error.filename}" if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    fix = "free some space, then run the same command again" if full else "check the path and its permissions"
    return f"{error.strerror or error}{where}; {fix}"


def tell(error: Exception) -> None:
    """Print it on stderr."""
    text = Text.assemble(("error", "bold red"), f": {message_of(error)}")
    Console(stderr=True, soft_wrap=True, highlight=False).print(text)
