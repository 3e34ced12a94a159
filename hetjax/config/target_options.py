"""The options of train.py that check a run against devices which are not there, apart from the settings of the run."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from hetjax.errors import ConfigError

HELP = """\
options that are no settings of the run:
  --target T      compile all programs for devices that are not there, report what they need, and run nothing: h100x256
                  (a100, h200, b200; hosts of 8), h100:32x4 (hosts x GPUs of each), v5p:4x4x4; see docs/targets.md
  --only STAGE    with --target: compile this module or stage alone, e.g. llm or llm.0
  --json FILE     with --target: write the report as JSON; - for stdout
  --picture FILE  with --target: draw the memory of the devices by action of the schedule (.png, .svg, .pdf)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """What to check, and where the report goes.

    Attributes:
        target: the devices, such as "h100x256".
        only: the module or stage that alone is compiled; None for all.
        json: file that the report goes to, "-" for stdout; None for none.
        picture: file that the picture goes to; None for none.
    """

    target: str
    only: str | None = None
    json: str | None = None
    picture: str | None = None


TARGET_OPTIONS = tuple(field.name for field in dataclasses.fields(TargetOptions))
"""The names of the options."""


def take_target_options(arguments: Sequence[str]) -> tuple[TargetOptions | None, list[str]]:
    """Return the options among the arguments of train.py, None without --target, and the other arguments.

    Raises ConfigError for an option without its value or without --target, and for a file in no folder.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in TARGET_OPTIONS:
        parser.add_argument(f"--{name}")
    try:
        values, others = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}; `python train.py --help` says what it takes") from None
    given = {name: value for name, value in vars(values).items() if value is not None}
    if "target" not in given:
        if given:
            raise ConfigError(f"--{next(iter(given))} is given without --target; add e.g. --target h100x256")
        return None, others
    for name in ("json", "picture"):
        if given.get(name, "-") != "-" and not Path(given[name]).absolute().parent.is_dir():
            raise ConfigError(f"--{name} {given[name]}: its folder does not exist; make it, or give another path")
    return TargetOptions(**given), others
