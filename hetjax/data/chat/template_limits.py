"""Limits of what a chat template may compute: a checkpoint's template is a program that somebody else wrote.

Rounds of loops, calls, and the sizes of texts, lists and numbers are counted, not seconds: a template is refused on
every machine or on none. What could make a large value of small ones is checked before it is computed.
"""

from __future__ import annotations

import functools
import itertools
import re
import string
import threading
from collections.abc import (
    Callable,
    Collection,
    Generator,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    ValuesView,
)

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.runtime import Context, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

STEPS = 1_000_000
"""Rounds of loops and calls of one rendering: those of tens of thousands of messages."""
CHARACTERS = 1 << 25
"""Of one text: eight million tokens or more."""
ITEMS = 1 << 20
"""Of one list, with those of lists in it."""
ALL_CHARACTERS = 1 << 28
"""Of all texts that are made on the way."""
_BITS = 4096  # of a number
_ITEM_COST = 32  # characters that an item of a list counts for: looking at it takes as long
_MOST_WIDTH = 99_999  # of a field in a format
_MOST_INDENT = 64
_PERCENT = re.compile(r"%(\(.*?\))?[-+ #0]*(\*|\d*)(?:\.(\*|\d*))?")
_IN_SPEC = re.compile(r"\d+")
_PLAIN = (str, bool, int, float, list, tuple, Mapping, jinja2.Undefined, type(None))
"""What may be written out: other objects may hold each other many times, which nobody counts."""
_WRITING = {
    "capitalize", "center", "e", "escape", "float", "forceescape", "format", "indent", "int", "join", "lower", "pprint",
    "replace", "string", "striptags", "title", "tojson", "trim", "truncate", "upper", "urlencode", "urlize",
    "wordwrap", "xmlattr",
}  # fmt: skip
"""Filters that write what they are given as a text."""


class LimitError(jinja2.TemplateError):
    """A template wants to compute more than it may."""


class _Spent(threading.local):
    """What the rendering of this thread has used so far."""

    steps = 0
    characters = 0


_spent = _Spent()


def begin() -> None:
    """Count from nothing: a rendering begins."""
    _spent.steps = _spent.characters = 0


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with limits. Templates are to be compiled from the trees of `limited`."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, *, extensions: Collection[type[Extension] | str] = (), **options: object):
        super().__init__(
            optimized=False,  # else constants are computed while the template is compiled
            finalize=_written,
            extensions=[*extensions, _Limits],
            **options,
        )
        self.globals.pop("lipsum")
        for name, each in list(self.filters.items()):
            self.add_filter(name, each)

    def add_filter(self, name: str, function: Callable[..., object]) -> None:
        """Let templates use a filter, under limits."""
        self.filters[name] = _limited_filter(name, function)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """Compute an operator, if its result is not too large."""
        if operator == "*":
            for one, count in ((left, right), (right, left)):
                if isinstance(one, str | bytes) and isinstance(count, int):
                    _check_size(len(one) * count)
                if isinstance(one, list | tuple) and isinstance(count, int):
                    _check_items(len(one) * count)
            if isinstance(left, int) and isinstance(right, int):
                _check_bits(left.bit_length() + right.bit_length())
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * right)
        elif operator == "+" and isinstance(left, list | tuple) and isinstance(right, list | tuple):
            _check_items(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            _check_percent(left, right)
        return _checked(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Callable[..., object], /, *values: object, **named: object) -> object:
        """Call a function, if its arguments cannot make it too large."""
        _step()
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, bytes | int | float):
            raise LimitError(f"it calls more of {type(owner).__name__} than it may: {name}")
        if isinstance(owner, str):
            values = tuple(map(_listed, values))
            _check_method(owner, name, values, named)
        elif name == "strftime_now":
            _check_percent(str(values[0]) if values else "", ())
        return _checked(super().call(context, function, *values, **named))

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        """Return what stands for the method `format` of a text, or None for other values."""
        function = super().wrap_str_format(value)
        if function is None:
            return None

        def limited_format(*values: object, **named: object) -> str:
            _check_braces(value.__self__, (*values, *named.values()))
            return function(*values, **named)

        return limited_format


def limited(tree: nodes.Template) -> nodes.Template:
    """Return the tree of a template with what counts its rounds, calls and texts, for a `LimitedEnvironment`."""
    return _Counting(tree.environment.extensions[_Limits.identifier]).visit(tree)


class _Limits(Extension):
    """What a counted template calls; of an extension, since no variable of the template can take its name."""

    def step(self, characters: int) -> str:
        """Count a round of a loop, or a call of a macro, that writes so many characters."""
        _step()
        _spend(characters)
        return ""

    def counted(self) -> bool:
        """Count a round of a loop whose condition may leave it out."""
        _step()
        return True

    def made(self, value: object) -> object:
        """Return a list, tuple or mapping that the template has written down."""
        _check_weight(value)
        return value

    def joined(self, *values: object) -> str:
        """Return texts one after another."""
        for value in values:
            _check_plain(value)
        _check_size(sum(len(value) for value in values if isinstance(value, str)))
        return _checked(str_join(values))


class _Counting(NodeTransformer):
    def __init__(self, limits: Extension):
        self._limits = limits

    def visit_For(self, node: nodes.For) -> nodes.For:
        node = self._counted(node)
        if node.test is not None:
            node.test = nodes.And(self._limits.call_method("counted", [], lineno=node.lineno), node.test)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Call:
        return self._made(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Call:
        return self._made(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        return self._made(node) if node.ctx == "load" else node

    def _made(self, node: nodes.Expr) -> nodes.Call:
        self.generic_visit(node)
        return self._limits.call_method("made", [node], lineno=node.lineno)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:
        return self._counted(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return self._limits.call_method("joined", node.nodes, lineno=node.lineno)

    def _counted(self, node):
        self.generic_visit(node)
        written = sum(len(each.data) for each in node.find_all(nodes.TemplateData))
        call = self._limits.call_method("step", [nodes.Const(written)], lineno=node.lineno)
        node.body.insert(0, nodes.Output([call]).set_lineno(node.lineno))
        return node


def _limited_filter(name: str, function: Callable[..., object]) -> Callable[..., object]:
    """Return a filter that checks what it is given, and what it returns."""
    # Jinja gives some filters its context or environment first, and knows them by an attribute that `wraps` copies.
    passes = getattr(function, "jinja_pass_arg", None) is not None

    @functools.wraps(function)
    def filtered(*values: object, **named: object) -> object:
        _step()
        values = tuple(map(_listed, values))
        given = (*(values[1:] if passes else values), *named.values())
        if name in _WRITING:
            for value in given:
                _check_plain(value)
            if name == "format":
                _check_percent(str(given[0]), given[1:])
            if name == "replace":
                _check_replace(str(given[0]), *map(str, given[1:3]))
            if name == "join" and isinstance(given[0], str | list | tuple | Mapping):
                _check_size(len(str(given[1])) * len(given[0]) if len(given) > 1 else 0)
            if name in ("indent", "tojson", "pprint") and any(
                isinstance(value, int) and value > _MOST_INDENT for value in given[1:]
            ):
                raise LimitError(f"it indents by more than {_MOST_INDENT}")
            if name == "indent":
                _check_size(len(str(given[1]) if len(given) > 1 else "") * str(given[0]).count("\n"))
        for value in given[1:]:
            if isinstance(value, int):
                _check_size(value)
        if name == "sum":
            _check_weight(list(given[0]) if isinstance(given[0], list | tuple) else given[0])
        return _checked(function(*values, **named))

    return filtered


def _listed(value: object) -> object:
    """Return what an iterator yields as a list, of which the length is known."""
    return list(value) if isinstance(value, Generator | KeysView | ValuesView | ItemsView | range) else value


def _check_method(text: str, name: str, values: tuple[object, ...], named: Mapping[str, object]) -> None:
    """Raise LimitError where a method of a text would make one that is too long; count the text that it looks at."""
    _spend(len(text))
    for value in (*values, *named.values()):
        if isinstance(value, int):
            _check_size(value * (text.count("\t") + 1 if name == "expandtabs" else 1))
    if name == "replace" and len(values) > 1:
        _check_replace(text, *map(str, values[:2]))
    if name == "join" and values and isinstance(values[0], str | list | tuple | Mapping):
        _check_size(len(text) * len(values[0]) + sum(len(each) for each in values[0] if isinstance(each, str)))
    if name == "translate" and values and isinstance(values[0], Mapping):
        _check_size(len(text) * max((len(each) for each in values[0].values() if isinstance(each, str)), default=1))


def _check_replace(text: str, old: str, new: str = "") -> None:
    count = len(text) + 1 if not old else text.count(old)
    _check_size(len(text) + count * len(new))


def _check_percent(form: str, values: object) -> None:
    """Raise LimitError where `form % values` would be too long."""
    _check_plain(values)
    found = list(_PERCENT.finditer(form))
    widths = [width for each in found for width in each.group(2, 3) if width]
    _check_widths([int(width) for width in widths if width != "*"])
    if "*" in widths:
        _check_widths([each for each in _leaves(values) if isinstance(each, int)])
    lengths = [len(each) for each in _leaves(values) if isinstance(each, str)]
    repeated = sum(each.group(1) is not None for each in found) * max(lengths, default=0)
    _check_size(len(form) + repeated + sum(lengths))


def _check_braces(form: str, values: object) -> None:
    """Raise LimitError where `form.format(values)` would be too long."""
    _check_plain(values)
    try:
        specs = [spec for _, field, spec, _ in string.Formatter().parse(form) if field is not None]
    except ValueError:
        return  # it raises the same, then
    _check_widths([int(width) for spec in specs for width in _IN_SPEC.findall(spec)])
    texts = [each for each in _leaves(values) if isinstance(each, str)]
    if any("{" in spec for spec in specs):
        _check_widths([each for each in _leaves(values) if isinstance(each, int)])
        _check_widths([int(width) for each in texts if len(each) < 64 for width in _IN_SPEC.findall(each)])
    _check_size(len(form) + len(specs) * max(map(len, texts), default=0))


def _check_widths(widths: Iterable[int]) -> None:
    if any(abs(width) > _MOST_WIDTH for width in widths):
        raise LimitError(f"a format asks for a field of more than {_MOST_WIDTH:,} characters")


def _checked(value: object) -> object:
    """Return a value that has been made, if it may be so large."""
    if isinstance(value, str | bytes):
        _check_size(len(value))
        _spend(len(value))
    elif isinstance(value, list | tuple | Mapping):
        _check_weight(value)
    elif isinstance(value, int):
        _check_bits(value.bit_length())
    return value


def _written(value: object) -> object:
    """Return a value that is written out as a text, if it may be so large."""
    _check_plain(value)
    return _checked(value) if isinstance(value, str) else value


def _check_plain(value: object) -> None:
    """Raise LimitError for a value that, written out, could be longer than anybody counts."""
    _check_weight(value)
    for each in _leaves(value):
        if not isinstance(each, _PLAIN):
            raise LimitError(f"it writes out more than texts, numbers, lists and mappings: {type(each).__name__}")


def _check_weight(value: object) -> None:
    """Raise LimitError where a value, written out, would be too long: lists may hold each other many times."""
    characters = count = 0
    for count, each in enumerate(_leaves(value)):
        _check_items(count)
        if isinstance(each, str):
            characters += len(each)
            _check_size(characters)
    _spend(_ITEM_COST * count)


def _leaves(value: object) -> Iterator[object]:
    """Yield what a value is made of, as often as it would be written."""
    waiting = [iter((value,))]
    while waiting:
        for each in waiting[-1]:
            if isinstance(each, list | tuple):
                waiting.append(iter(each))
                yield None
                break
            if isinstance(each, Mapping):
                waiting.append(itertools.chain(each.keys(), each.values()))
                yield None
                break
            yield each
        else:
            waiting.pop()


def _step() -> None:
    _spent.steps += 1
    if _spent.steps > STEPS:
        raise LimitError(f"it takes more than {STEPS:,} rounds of loops and calls")


def _spend(characters: int) -> None:
    _spent.characters += characters
    if _spent.characters > ALL_CHARACTERS:
        raise LimitError(f"it makes texts of more than {ALL_CHARACTERS:,} characters together")


def _check_size(size: int) -> None:
    if size > CHARACTERS:
        raise LimitError(f"it makes a text of more than {CHARACTERS:,} characters")


def _check_items(count: int) -> None:
    if count > ITEMS:
        raise LimitError(f"it makes a list of more than {ITEMS:,} items")


def _check_bits(bits: int) -> None:
    if bits > _BITS:
        raise LimitError(f"it computes a number of more than {_BITS:,} bits")
