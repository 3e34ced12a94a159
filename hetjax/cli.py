"""The console command `hetjax`: tools beside the trainer, each with --help and --json."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import jsonargparse
from rich.console import Console

from hetjax.config import add_settings, explain, load_config, parse_errors, take_settings
from hetjax.errors import ConfigError, HetjaxError
from hetjax.tools.bench_overhead import overhead
from hetjax.tools.bench_step import step
from hetjax.tools.demo_data import digits
from hetjax.tools.outcome import Outcome
from hetjax.tools.placement import placement
from hetjax.tools.timeline import timeline
from meshes import PlacementError
from models import ModelError

USER_ERRORS = (HetjaxError, PlacementError, ModelError)

Tools = Mapping[str, "Callable[..., Outcome] | Tools"]

# A tool's parameters are its options and its docstring is its help; one with a parameter `config` takes
# the settings of a run as train.py does.
TOOLS: Tools = {
    "timeline": timeline,
    "placement": placement,
    "demo-data": {"digits": digits},
    "bench": {"overhead": overhead, "step": step},
}
GROUPS = {"demo-data": "Make data to try the trainer on.", "bench": "Measure speed on this machine."}


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


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of hetjax."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    with user_errors():
        outcome, as_json = run_tool(arguments)
    if as_json:
        print(json.dumps(outcome.numbers), flush=True)
        return
    console = Console()
    for item in outcome.shown:
        console.print(item, highlight=False, soft_wrap=isinstance(item, str))
