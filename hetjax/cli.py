"""The two command lines: `python train.py`, and `hetjax` for the tools beside it."""

from __future__ import annotations

import contextlib
import errno
import json
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from hetjax.config import load_config
from hetjax.errors import HetjaxError
from meshes import PlacementError
from models import ModelError

USER_ERRORS = (HetjaxError, PlacementError, ModelError)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn an error that the user caused into its message on stderr and exit code 2."""
    try:
        yield
    except USER_ERRORS as error:
        _tell(str(error))
        raise SystemExit(2) from None
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "free some space, then run the same command again" if full else "check the path and its permissions"
        _tell(f"{error.strerror or error}{where}; {fix}")
        raise SystemExit(2) from None


def _tell(message: str) -> None:
    text = Text.assemble(("error", "bold red"), f": {message}")
    Console(stderr=True, soft_wrap=True, highlight=False).print(text)


def train_main(arguments: Sequence[str] | None = None) -> None:
    """The command line of train.py."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with user_errors():
        config, resolved = load_config(arguments)
        # Imported only now: --help and a mistyped setting need no JAX program.
        from hetjax.run import train

        train(config, resolved, console=Console(soft_wrap=True, markup=False, highlight=False))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of hetjax: what a tool found as tables, or with --json as one JSON object on the last line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    from hetjax.tools import run_tool  # only here: train.py needs none of them

    with user_errors():
        outcome, as_json = run_tool(arguments)
    if as_json:
        print(json.dumps(outcome.numbers), flush=True)
        return
    console = Console()
    for item in outcome.shown:
        console.print(item, highlight=False, soft_wrap=isinstance(item, str))
