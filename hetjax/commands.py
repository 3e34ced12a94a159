"""The command line of the tools: their list, and their options from their signatures."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jsonargparse

from hetjax.config.command_line import PARSE_ERRORS, explain
from hetjax.errors import ConfigError
from hetjax.tools.outcome import Outcome

ToolFunction = Callable[..., Outcome]


@dataclasses.dataclass(frozen=True)
class Tool:
    """A function that the command line calls, imported only when it is named: most tools import JAX.

    Its parameters are the options and its docstring is the help. One with a parameter `config` takes the settings of a
    run, as train.py does, or, where that may be None, does so if --config is given; one with a parameter `command`
    takes what stands behind `--`.
    Parameters that are not keyword-only stand on the command line without a name.
    An option whose word Python keeps for itself is a parameter with "_" behind it: `from_` is --from.
    One of type `list[str] | None` takes several words: --image a.png b.png.

    Attributes:
        module: The module that defines it.
        name: Its name in that module.
    """

    module: str
    name: str

    def load(self) -> ToolFunction:
        """Import the function."""
        return getattr(importlib.import_module(self.module), self.name)

    def summary(self) -> str:
        """Return what its docstring says ahead of the arguments, read from the source without importing it."""
        tree = ast.parse(Path(importlib.util.find_spec(self.module).origin).read_text(encoding="utf-8"))
        [node] = [each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == self.name]
        return _without_arguments(ast.get_docstring(node))


TOOLS = {
    "launch": Tool("hetjax.tools.launch", "launch"),
    "timeline": Tool("hetjax.tools.timeline", "timeline"),
    "model": Tool("hetjax.tools.model", "model"),
    "placement": Tool("hetjax.tools.placement", "placement"),
    "boundary": Tool("hetjax.tools.boundary", "boundary"),
    "fit": Tool("hetjax.tools.target.fit", "fit"),
    "convert": Tool("hetjax.tools.convert", "convert"),
    "checkpoint verify": Tool("hetjax.tools.checkpoint", "verify"),
    "checkpoint inspect": Tool("hetjax.tools.checkpoint", "inspect"),
    "evaluate": Tool("hetjax.tools.evaluate", "evaluate"),
    "generate": Tool("hetjax.tools.generate", "generate"),
    "data inspect": Tool("hetjax.tools.data.inspect_data", "inspect_data"),
    "data lengths": Tool("hetjax.tools.data.lengths", "lengths"),
    "data convert": Tool("hetjax.tools.data.convert", "convert_data"),
    "demo-data digits": Tool("hetjax.tools.demo_data", "digits"),
    "demo-data shapes": Tool("hetjax.tools.demo_data", "shapes"),
    "demo-data digits-and-tones": Tool("hetjax.tools.demo_data", "digits_and_tones"),
    "bench overhead": Tool("hetjax.tools.bench.overhead", "overhead"),
    "bench step": Tool("hetjax.tools.bench.step", "step"),
    "bench overlap": Tool("hetjax.tools.bench.overlap", "overlap"),
    "bench boundary": Tool("hetjax.tools.bench.boundary", "bench_boundary"),
    "bench layouts": Tool("hetjax.tools.bench.layouts", "layouts"),
    "bench schedules": Tool("hetjax.tools.bench.schedules", "schedules"),
    "bench model": Tool("hetjax.tools.bench.model", "bench_model"),
    "bench data": Tool("hetjax.tools.bench.data", "bench_data"),
}
GROUPS = {
    "checkpoint": "Look at the checkpoints of a run.",
    "data": "Look at the data of a run, measure it, write it anew.",
    "demo-data": "Make data to try the trainer on.",
    "bench": "Measure speed on this machine.",
}
# Parameters of a tool that are no options.
NO_OPTIONS = {"config", "command"}


def run_tool(arguments: Sequence[str]) -> tuple[Outcome, bool]:
    """Parse a command line and run its tool; returns (its outcome, whether that is wanted as JSON).

    Raises ConfigError for a command line that makes no sense, and whatever user error the tool raises.
    """
    arguments, behind = _split_at_dashes(arguments)
    name = _named_tool(arguments)
    if name is None:
        return _refuse_or_help(arguments)
    function = TOOLS[name].load()
    has_settings = _has_settings(function, arguments)
    parser = _tool_parser(name, function, has_settings)
    try:
        values = _parser_of_all(name, parser).parse_args(arguments)
        for word in name.split():
            values = values[word]
        options = _options(function, parser, values, has_settings)
    except PARSE_ERRORS as error:
        help_line = f"`hetjax {name} --help` lists every setting"
        raise ConfigError(
            explain(str(error), _known_options(function, parser, has_settings), help_line=help_line)
        ) from None
    if "command" in _parameters(function):
        options["command"] = behind
    elif behind:
        raise ConfigError(f"hetjax {name} takes nothing behind --, but there stands {' '.join(behind)!r}")
    return function(**options), values.json


def _split_at_dashes(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words of a command line before and behind the first `--`."""
    arguments = list(arguments)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def _named_tool(arguments: Sequence[str]) -> str | None:
    """Return the tool that a command line begins with, if any."""
    names = (" ".join(arguments[:count]) for count in (2, 1))
    return next((name for name in names if name in TOOLS), None)


def _refuse_or_help(arguments: Sequence[str]) -> typing.NoReturn:
    """Handle a command line that names no tool: exit after --help, else raise ConfigError."""
    try:
        _parser_of_all().parse_args(arguments)
    except PARSE_ERRORS as error:
        words = [word for name in TOOLS for word in name.split()]
        raise ConfigError(explain(str(error), words, help_line="`hetjax --help` lists the tools")) from None
    raise ConfigError("no tool is named; `hetjax --help` lists the tools")


def _parser_of_all(
    named: str | None = None, named_parser: jsonargparse.ArgumentParser | None = None
) -> jsonargparse.ArgumentParser:
    """Build the parser that leads to the tools; only the named one takes options."""
    parser = jsonargparse.ArgumentParser(
        prog="hetjax",
        usage="hetjax TOOL [--key value ...]",
        description="Tools beside the trainer.",
        exit_on_error=False,
    )
    tools = parser.add_subcommands(dest="tool", title="tools", metavar="TOOL")
    groups = {}
    for name, summary in GROUPS.items():
        usage = f"hetjax {name} TOOL [--key value ...]"
        group = jsonargparse.ArgumentParser(usage=usage, description=summary, exit_on_error=False)
        tools.add_subcommand(name, group, help=summary)
        groups[name] = group.add_subcommands(dest="tool", title="tools", metavar="TOOL")
    for name, tool in TOOLS.items():
        group, _, last = name.rpartition(" ")
        own = named_parser if name == named else jsonargparse.ArgumentParser(exit_on_error=False)
        (groups[group] if group else tools).add_subcommand(last, own, help=tool.summary())
    return parser


def _has_settings(function: ToolFunction, arguments: Sequence[str]) -> bool:
    """Return whether a command line has the settings of a run: where a tool needs them, or may have them and does."""
    if "config" not in _parameters(function):
        return False
    is_optional = type(None) in typing.get_args(typing.get_type_hints(function)["config"])
    return not is_optional or any(word.split("=")[0] == "--config" for word in arguments)


def _tool_parser(name: str, function: ToolFunction, has_settings: bool) -> jsonargparse.ArgumentParser:
    """Build the parser of one tool."""
    parameters = inspect.signature(function).parameters
    settings = "--config FILE " if has_settings else "[--config FILE] " if "config" in parameters else ""
    behind = " -- FILE ..." if "command" in parameters else ""
    words = [each.name for each in parameters.values() if each.kind is each.POSITIONAL_OR_KEYWORD]
    ahead = "".join(f"{word.upper()} " for word in words)
    parser = jsonargparse.ArgumentParser(
        usage=f"hetjax {name} {ahead}{settings}[--key value ...]{behind}",
        description=_without_arguments(inspect.getdoc(function)),
        exit_on_error=False,
    )
    types = typing.get_type_hints(function)
    keywords = sorted(key for key in parameters if key.endswith("_"))
    for key in keywords:
        parser.add_argument(f"--{key.rstrip('_')}", type=types[key], required=True, help=_help_of(function, key))
    several = [key for key in parameters if types[key] == list[str] | None]
    for key in several:
        parser.add_argument(f"--{key}", nargs="+", type=str, default=None, help=_help_of(function, key))
    skipped = NO_OPTIONS.union(keywords, several)
    parser.add_function_arguments(function, skip=skipped, as_group=False, as_positional=bool(words))
    parser.add_argument("--json", action="store_true", help="print JSON, an object a line, and no table")
    if has_settings:
        from hetjax.config.run_config import add_settings

        add_settings(parser)
    return parser


def _options(
    function: ToolFunction, parser: jsonargparse.ArgumentParser, values: jsonargparse.Namespace, has_settings: bool
) -> dict[str, object]:
    """Return the arguments of a tool that the parsed values hold, `command` aside."""
    made = parser.instantiate(values)
    options = {key: made[key.rstrip("_")] for key in _parameters(function) - NO_OPTIONS}
    if has_settings:
        from hetjax.config.run_config import take_settings

        options["config"] = take_settings(values, parser)
    return options


def _known_options(function: ToolFunction, parser: jsonargparse.ArgumentParser, has_settings: bool) -> list[str]:
    """Return the names that a tool's command line may use."""
    if has_settings:
        from hetjax.config.run_config import known_settings

        return known_settings(parser)
    kinds = [kind for hint in typing.get_type_hints(function).values() for kind in _dataclasses_in(hint)]
    return [*parser.get_defaults().keys(), *(field.name for kind in kinds for field in dataclasses.fields(kind))]


def _dataclasses_in(hint: object) -> Iterator[type]:
    """Yield the dataclasses that a type names, such as that of the values of a dict."""
    if dataclasses.is_dataclass(hint):
        yield hint
    for part in typing.get_args(hint):
        yield from _dataclasses_in(part)


def _help_of(function: ToolFunction, name: str) -> str:
    """Return the line of a parameter in the docstring."""
    (help_text,) = re.findall(rf"^ +{name}: (.*)$", inspect.getdoc(function), re.MULTILINE)
    return help_text


def _parameters(function: ToolFunction) -> set[str]:
    return set(inspect.signature(function).parameters)


def _without_arguments(docstring: str) -> str:
    return docstring.partition("\n\nArgs:")[0]
