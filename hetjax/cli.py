"""The two command lines: `python train.py`, and `hetjax` for the tools beside it."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console

from hetjax.config.run_config import load_config
from hetjax.error_report import USER_ERROR_CODE, USER_ERRORS, tell


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn an error that the user caused into its message on stderr and exit code 2."""
    try:
        yield
    except USER_ERRORS as error:
        tell(error)
        raise SystemExit(USER_ERROR_CODE) from None


def train_main(arguments: Sequence[str] | None = None) -> None:
    """The command line of train.py."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with user_errors():
        config, resolved = load_config(arguments)
        # Imported only now: --help and a mistyped setting need no JAX program.
        from hetjax.training.loop import train

        train(config, resolved, console=Console(soft_wrap=True, markup=False, highlight=False))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of hetjax: what a tool found as tables, or with --json as one JSON object on the last line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    from hetjax.commands import run_tool  # only here: train.py needs none of them

    with user_errors():
        outcome, as_json = run_tool(arguments)
    if as_json:
        print(json.dumps(outcome.numbers), flush=True)
        return
    console = Console()
    for item in outcome.shown:
        console.print(item, highlight=False, soft_wrap=isinstance(item, str))
