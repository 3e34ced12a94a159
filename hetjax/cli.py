"""The console command `hetjax`: tools beside the trainer, each with --help and --json."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console

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
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error[/]: {_plain(str(error))}")
        raise SystemExit(2) from None
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        message = (
            f"{error.strerror or error}{where}; free the space or change the path, then run the same command again"
        )
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error[/]: {_plain(message)}")
        raise SystemExit(2) from None


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def train_main(arguments: Sequence[str] | None = None) -> None:
    """The command line of train.py."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with user_errors():
        config, resolved = load_config(arguments)
        # Imported only now: --help and a mistyped setting need no JAX program.
        from hetjax.run import train

        train(config, resolved, console=Console(soft_wrap=True))
