"""Report an error that the user can fix: its message alone, without a traceback."""

from __future__ import annotations

import errno

from rich.console import Console
from rich.text import Text

from hetjax.errors import HetjaxError

USER_ERROR_CODE = 2
"""Exit code of a command that ends with an error of the user's."""


def is_user_error(error: BaseException) -> bool:
    """Return whether the cause of an error is the user's input or machine, so that its message says how to fix it."""
    if isinstance(error, (HetjaxError, OSError)):
        return True
    # Imported here: both packages import JAX, which `hetjax launch` does without.
    from hetjax.meshes import PlacementError
    from hetjax.models import ModelError

    return isinstance(error, (PlacementError, ModelError))


def message_of(error: BaseException) -> str:
    """Return the message to print for an error that `is_user_error`."""
    if not isinstance(error, OSError):
        return str(error)
    where = f": {error.filename}" if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    fix = "free some space, then run the same command again" if full else "check the path and its permissions"
    return f"{error.strerror or error}{where}; {fix}"


def report_error(error: BaseException) -> None:
    """Print the message of an error that `is_user_error` on stderr."""
    text = Text.assemble(("error", "bold red"), f": {message_of(error)}")
    Console(stderr=True, soft_wrap=True, highlight=False).print(text)
