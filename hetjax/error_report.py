"""Report an error that the user can fix: its message alone, without a traceback."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from hetjax.errors import HetjaxError

USER_ERROR_CODE = 2
"""Exit code of a command that ends with an error of the user's."""

STORAGE_ERROR_CODE = 74
"""EX_IOERR of sysexits.h: storage or network failed in a way that may pass, so that the same command may succeed."""

_PASSING = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENETDOWN, errno.ENETUNREACH,
    errno.ENETRESET, errno.ECONNABORTED, errno.ECONNRESET, errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.EREMOTEIO, errno.ENOLCK,
}  # fmt: skip
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_OF_TENSORSTORE = re.compile(r"\[OS error (\d+): ")  # by which Orbax's storage passes an error on as a text


def is_user_error(error: BaseException) -> bool:
    """Return whether the cause of an error is the user's input or machine, so that its message says how to fix it."""
    if isinstance(error, (HetjaxError, OSError)):
        return True
    # Imported here: both packages import JAX, which `hetjax launch` does without.
    from hetjax.meshes import PlacementError
    from hetjax.models import ModelError

    return isinstance(error, (PlacementError, ModelError))


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a command that ends with an error that `is_user_error`."""
    return STORAGE_ERROR_CODE if any(code in _PASSING for code in _system_errors(error)) else USER_ERROR_CODE


def _system_errors(error: BaseException) -> Iterator[int]:
    """Yield the codes of the operating system's errors that an error comes from."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, OSError) and each.errno is not None:
            yield each.errno
        yield from map(int, _OF_TENSORSTORE.findall(str(each)))
        waiting += [each.__cause__, None if each.__suppress_context__ else each.__context__]


def message_of(error: BaseException) -> str:
    """Return the message to print for an error that `is_user_error`."""
    if not isinstance(error, OSError):
        return str(error)
    where = f": {error.filename}" if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    fix = "free some space, then run the same command again" if full else "check the path and its permissions"
    if error.errno in _PASSING:
        fix = "storage or network failed; run the same command again"
    return f"{error.strerror or error}{where}; {fix}"


def report_error(error: BaseException) -> None:
    """Print the message of an error that `is_user_error` on stderr."""
    # Names of files may be in it, which must not move the cursor or colour what follows.
    message = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), message_of(error))
    text = Text.assemble(("error", "bold red"), f": {message}")
    Console(stderr=True, soft_wrap=True, highlight=False).print(text)
