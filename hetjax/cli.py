"""The two command lines: `python train.py`, and `hetjax` for the tools beside it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from hetjax.error_report import USER_ERROR_CODE, exit_code_of, is_user_error, report_error

if TYPE_CHECKING:
    from hetjax.config.run_config import TrainConfig
    from hetjax.config.target_options import TargetOptions

# Each command imports its own parts inside of its function: the launcher needs no JAX, and --help or a mistyped
# setting of train.py no trainer.


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn an error that the user caused into its message on stderr and exit code 2; 74 where storage failed and may
    come back."""
    try:
        yield
    except Exception as error:
        if not is_user_error(error):
            raise
        report_error(error)
        raise SystemExit(exit_code_of(error)) from None


def train_main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of train.py; `arguments` without the name of the program, None for those of the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    from hetjax.config.target_options import take_target_options

    with user_errors():
        options, settings = take_target_options(arguments)
        if options is not None:
            # Before JAX is imported: what XLA says of the memory it lacks is the report's to say.
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        from hetjax.config.run_config import load_config

        config, resolved = load_config(settings)
        if options is not None:
            _check_target(config, options)
        from hetjax.training.loop import train

        train(config, resolved, console=Console(soft_wrap=True, markup=False, highlight=False))


def _check_target(config: TrainConfig, options: TargetOptions) -> NoReturn:
    """Check a run against a target; exits with 0 where it fits, with 2 where it does not."""
    from hetjax.tools.target.check_run import check_run

    report = check_run(config, options, results=Console(), progress=Console(stderr=True, soft_wrap=True, markup=False))
    raise SystemExit(0 if report.fits else USER_ERROR_CODE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of hetjax: print a tool's tables, or with --json what it found as JSON."""
    arguments = sys.argv[1:] if arguments is None else arguments
    from hetjax.commands import run_tool

    with user_errors():
        outcome, as_json = run_tool(arguments)
    if as_json:
        for each in [outcome.numbers] if isinstance(outcome.numbers, Mapping) else outcome.numbers:
            print(json.dumps(each), flush=True)
        return
    console = Console()
    for item in outcome.shown:
        console.print(item, highlight=False, soft_wrap=isinstance(item, str))
