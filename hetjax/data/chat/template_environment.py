"""The sandbox in which chat templates run: Jinja with what `transformers` gives them."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension

from hetjax.data.chat.marks import LOOP_END, LOOP_START, SAID_END, SAID_START
from hetjax.data.chat.template_limits import LimitedEnvironment, limited

TURN_FUNCTION = "_turn_mark"
"""What a marked template calls at the beginning of each round of a loop, with the loop's variables."""

# What these hold goes into a variable or an argument, where a mark could change what the template does.
_HELD = (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock)


@functools.cache
def template_environment() -> LimitedEnvironment:
    """Return the environment, with `raise_exception`, `strftime_now`, `tojson`, loop controls and `generation`."""
    environment = LimitedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.add_filter("tojson", _tojson)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = strftime_now
    return environment


def mark_loops(source: str) -> nodes.Template:
    """Return the syntax tree of a template that also writes where its loops begin, come to a message, and end.

    It counts what it computes (`hetjax.data.chat.template_limits`).
    """
    environment = template_environment()
    tree = environment.parse(source)
    _mark_children(tree)
    tree.set_environment(environment)
    return limited(tree)


def _mark_children(node: nodes.Node) -> None:
    for field, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, field, [new for child in value for new in _marked(child)])


def _marked(child: object) -> list[object]:
    if not isinstance(child, nodes.Stmt) or isinstance(child, _HELD):
        return [child]
    _mark_children(child)
    if not isinstance(child, nodes.For):
        return [child]
    targets = child.target.items if isinstance(child.target, nodes.Tuple) else [child.target]
    names = [nodes.Name(target.name, "load") for target in targets if isinstance(target, nodes.Name)]
    call = nodes.Call(nodes.Name(TURN_FUNCTION, "load"), names, [], None, None)
    child.body.insert(0, nodes.Output([call]).set_lineno(child.lineno))
    before, after = (nodes.Output([nodes.TemplateData(mark)]) for mark in (LOOP_START, LOOP_END))
    return [before.set_lineno(child.lineno), child, after.set_lineno(child.lineno)]


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`, what an assistant says, between the marks for it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return SAID_START + caller() + SAID_END


def strftime_now(form: str) -> str:
    """Return the time of now in a format of `strftime`."""
    return datetime.datetime.now().strftime(form)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
