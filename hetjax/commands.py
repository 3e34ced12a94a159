"""The command line of the tools: which there are, and their options from their signatures."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Sequence

import jsonargparse

from hetjax.config.run_config import PARSE_ERRORS, add_settings, explain, known_settings, take_settings
from hetjax.errors import ConfigError
from hetjax.tools.bench.boundary import bench_boundary
from hetjax.tools.bench.layouts import layouts
from hetjax.tools.bench.model import bench_model
from hetjax.tools.bench.overhead import overhead
from hetjax.tools.bench.overlap import overlap
from hetjax.tools.bench.schedules import schedules
from hetjax.tools.bench.step import step
from hetjax.tools.boundary import boundary
from hetjax.tools.convert import convert
from hetjax.tools.demo_data import digits, shapes
from hetjax.tools.generate import generate
from hetjax.tools.launch import launch
from hetjax.tools.model import model
from hetjax.tools.outcome import Outcome
from hetjax.tools.placement import placement
from hetjax.tools.timeline import timeline

# A tool's parameters are its options and its docstring is its help. One with a parameter `config` takes
# the settings of a run, as train.py does; one with a parameter `command` takes what stands behind `--`.
# Parameters that are not keyword-only stand on the command line without a name.
# An option whose word Python keeps for itself is a parameter with "_" behind it: `from_` is --from.
# One of type `list[str] | None` takes several words: --image a.png b.png.
TOOLS: dict[str, Callable[..., Outcome]] = {
    "launch": launch,
    "timeline": timeline,
    "model": model,
    "placement": placement,
    "boundary": boundary,
    "convert": convert,
    "generate": generate,
    "demo-data digits": digits,
    "demo-data shapes": shapes,
    "bench overhead": overhead,
    "bench step": step,
    "bench overlap": overlap,
    "bench boundary": bench_boundary,
    "bench layouts": layouts,
    "bench schedules": schedules,
    "bench model": bench_model,
}
# Parameters that are no options.
BESIDE = {"config", "command"}
GROUPS = {"demo-data": "Make data to try the trainer on.", "bench": "Measure speed on this machine."}


def run_tool(arguments: Sequence[str]) -> tuple[Outcome, bool]:
    """Parse a command line and run its tool: (what it found, whether that is wanted as JSON).

    Raises ConfigError for a command line that makes no sense, and whatever user error the tool raises.
    """
    command = _Command()
    arguments, behind = _cut(arguments)
    try:
        values = command.parser.parse_args(arguments)
        name, parser, values = command.chosen(values)
        made = parser.instantiate(values)
        options = {key: made[key.rstrip("_")] for key in _parameters(TOOLS[name]) - BESIDE}
        if "command" in _parameters(TOOLS[name]):
            options["command"] = behind
        elif behind:
            raise ConfigError(f"hetjax {name} takes nothing behind --, but there stands {' '.join(behind)!r}")
        if _takes_config(TOOLS[name]):
            options["config"] = take_settings(values, parser)
    except PARSE_ERRORS as error:
        raise ConfigError(command.explain(str(error), arguments)) from None
    return TOOLS[name](**options), values.json


def _cut(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line before and behind the first `--`."""
    arguments = list(arguments)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:cut], arguments[cut + 1 :]


class _Command:
    """The parser of every tool, and the one that leads to them."""

    def __init__(self) -> None:
        self.parser = jsonargparse.ArgumentParser(
            prog="hetjax",
            usage="hetjax TOOL [--key value ...]",
            description="Tools beside the trainer.",
            exit_on_error=False,
        )
        tools = self.parser.add_subcommands(dest="tool", title="tools", metavar="TOOL")
        groups = {}
        for name, summary in GROUPS.items():
            usage = f"hetjax {name} TOOL [--key value ...]"
            group = jsonargparse.ArgumentParser(usage=usage, description=summary, exit_on_error=False)
            tools.add_subcommand(name, group, help=summary)
            groups[name] = group.add_subcommands(dest="tool", title="tools", metavar="TOOL")
        self.tools = {name: _tool_parser(name, tool) for name, tool in TOOLS.items()}
        for name, parser in self.tools.items():
            group, _, last = name.rpartition(" ")
            (groups[group] if group else tools).add_subcommand(last, parser, help=_summary(TOOLS[name]))

    def chosen(self, values: jsonargparse.Namespace) -> tuple[str, jsonargparse.ArgumentParser, jsonargparse.Namespace]:
        """The tool of a parsed command line: its name, parser and values."""
        names = []
        while "tool" in values:
            names.append(values.tool)
            values = values[values.tool]
        name = " ".join(names)
        return name, self.tools[name], values

    def explain(self, message: str, arguments: Sequence[str]) -> str:
        """A parser's message on this command line, with what was likely meant and where to look it up."""
        for count in (2, 1):
            name = " ".join(arguments[:count])
            if name in self.tools:
                help_line = f"`hetjax {name} --help` lists every setting"
                return explain(message, known_settings(self.tools[name]), help_line=help_line)
        words = [word for name in TOOLS for word in name.split()]
        return explain(message, words, help_line="`hetjax --help` lists the tools")


def _tool_parser(name: str, tool: Callable[..., Outcome]) -> jsonargparse.ArgumentParser:
    settings = "--config FILE " if _takes_config(tool) else ""
    behind = " -- FILE ..." if "command" in _parameters(tool) else ""
    words = [each for each in inspect.signature(tool).parameters.values() if each.kind is each.POSITIONAL_OR_KEYWORD]
    ahead = "".join(f"{each.name.upper()} " for each in words)
    parser = jsonargparse.ArgumentParser(
        usage=f"hetjax {name} {ahead}{settings}[--key value ...]{behind}",
        description=_summary(tool),
        exit_on_error=False,
    )
    kept = {key for key in _parameters(tool) if key.endswith("_")}
    for key in sorted(kept):
        _add_kept_word(parser, tool, key)
    several = {key for key, hint in typing.get_type_hints(tool).items() if hint == list[str] | None}
    for key in inspect.signature(tool).parameters:
        if key in several:
            parser.add_argument(f"--{key}", nargs="+", type=str, default=None, help=_help_of(tool, key))
    parser.add_function_arguments(tool, skip=BESIDE | kept | several, as_group=False, as_positional=bool(words))
    parser.add_argument("--json", action="store_true", help="print one JSON object, on the last line, and no table")
    if settings:
        add_settings(parser)
    return parser


def _add_kept_word(parser: jsonargparse.ArgumentParser, tool: Callable[..., Outcome], name: str) -> None:
    """Add the option of a parameter `name` that ends in "_", whose help is its line in the docstring."""
    hint = typing.get_type_hints(tool)[name]
    parser.add_argument(f"--{name.rstrip('_')}", type=hint, required=True, help=_help_of(tool, name))


def _help_of(tool: Callable[..., Outcome], name: str) -> str:
    """The line of a parameter in the docstring."""
    (help_text,) = re.findall(rf"^ +{name}: (.*)$", inspect.getdoc(tool), re.MULTILINE)
    return help_text


def _takes_config(tool: Callable[..., Outcome]) -> bool:
    return "config" in _parameters(tool)


def _parameters(tool: Callable[..., Outcome]) -> set[str]:
    return set(inspect.signature(tool).parameters)


def _summary(tool: Callable[..., Outcome]) -> str:
    """The docstring without its list of arguments."""
    return inspect.getdoc(tool).partition("\n\nArgs:")[0]
