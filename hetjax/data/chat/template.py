"""Apply chat templates: from turns to the text that a language model was trained on.

A checkpoint's template is a Jinja program in `chat_template.jinja`, or in `tokenizer_config.json`. It runs in Jinja's
sandbox with what `transformers` gives it (`hetjax.data.chat.template_environment`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from hetjax.data.chat import template_limits
from hetjax.data.chat.marks import TURN, MarkedText, read_marks
from hetjax.data.chat.pretokenized import checksum
from hetjax.data.chat.template_environment import TURN_FUNCTION, mark_loops, template_environment
from hetjax.errors import DataError

DEFAULT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined -%}{{ '<think>\\n' if enable_thinking else '<think></think>' }}{%- endif -%}"
    "{%- endif -%}"
)
"""For a checkpoint without a template: ChatML, with Nemotron's start of an answer where `enable_thinking` is given."""

BUILT_IN_MARKS = ("<|im_start|>", "<|im_end|>")
"""The special tokens that DEFAULT_TEMPLATE writes."""

Messages = Sequence[Mapping[str, object]]


class Frame(NamedTuple):
    """What a template writes around an answer.

    Attributes:
        header: what stands before it and is not the assistant's.
        end: its end mark and what follows that.
    """

    header: str
    end: str


class RefusedError(DataError):
    """The template does not take these messages at all."""


class ChatTemplate:
    """A chat template, compiled.

    Args:
        source: The Jinja program.
        specials: Text of the special tokens that it may name (bos_token, eos_token, ...).
        for_tools: The Jinja program for chats with tools, where a checkpoint has one of its own.

    Attributes:
        marks_answers: Whether it has `generation` blocks around what an assistant says.
        frames: What it writes around answers, as it was seen, by the options that it got.

    Raises DataError where the program is malformed.
    """

    def __init__(
        self,
        source: str = DEFAULT_TEMPLATE,
        *,
        specials: Mapping[str, str] | None = None,
        for_tools: str | None = None,
    ):
        self.source, self.specials = source, dict(specials or {})
        self.marks_answers = re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", source) is not None
        self.frames: dict[str, Frame] = {}
        self._for_tools = None if for_tools is None else ChatTemplate(for_tools, specials=specials)
        try:
            self._program = template_environment().from_string(mark_loops(source))
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError, MemoryError) as error:
            raise DataError(f"the chat template is malformed: {error}; give one that Jinja can read") from error

    def for_chat(self, tools: object) -> ChatTemplate:
        """Return the template for a chat with these tools, or with None."""
        return self if tools is None or self._for_tools is None else self._for_tools

    def checksum(self) -> str:
        """Return a checksum of all that decides about the text of a chat, but for options."""
        tools = "" if self._for_tools is None else self._for_tools.checksum()
        return checksum(self.source, sorted(self.specials.items()), tools)

    def render(self, messages: Messages, *, add_generation_prompt: bool, **options: object) -> MarkedText:
        """Return the text of a chat, with what was written for which message.

        `options` are what the template may ask for (tools, enable_thinking).

        Raises:
            RefusedError: the template refuses the messages.
        """
        messages = list(messages)
        numbers = {id(message): number for number, message in enumerate(messages)}

        def turn_mark(*values: object) -> str:
            found = [numbers[id(value)] for value in values if id(value) in numbers]
            return f"{TURN}{found[0]}{TURN}" if found else ""

        template_limits.begin()
        given = {**self.specials, "tools": None, "documents": None, **options}
        try:
            text = self._program.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **given, **{TURN_FUNCTION: turn_mark}
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise RefusedError(f"the chat template refuses the messages: {error}") from error
        except RecursionError as error:
            raise RefusedError("the chat template refuses the messages: it calls itself too often") from error
        except MemoryError as error:
            raise RefusedError("the chat template refuses the messages: it wants more memory than there is") from error
        return read_marks(text)


def load_template(path: str | Path | None, *, required: bool = False) -> ChatTemplate:
    """Load the template of a checkpoint's folder, or a file with one; the built-in one for None.

    A folder has it in chat_template.jinja, chat_template.json or tokenizer_config.json. One without gives the built-in
    template, unless it is `required`.

    Raises:
        DataError: there is no such file or folder; it has no template, or several and none named "default"; or a file
            cannot be read.
    """
    if path is None:
        return ChatTemplate()
    path = Path(path)
    if not path.exists():
        raise DataError(f"the chat template '{path}' does not exist; give a .jinja file, or a folder that has one")
    folder = path if path.is_dir() else path.parent
    try:
        config = _json(folder / "tokenizer_config.json")
        source = _find_source(path, config)
        specials = _specials(config, _json(folder / "special_tokens_map.json"))
    except (OSError, ValueError) as error:
        raise DataError(f"the chat template in '{path}' cannot be read: {error}; repair the file") from error
    if source is None and required:
        raise DataError(
            f"'{path}' has no chat template: neither chat_template.jinja nor one in tokenizer_config.json; give a "
            "file or folder that has one, or null for the tokenizer's"
        )
    default, for_tools = _choose(source, path)
    return ChatTemplate(DEFAULT_TEMPLATE if default is None else default, specials=specials, for_tools=for_tools)


def _find_source(path: Path, config: Mapping[str, object]) -> object:
    """Return what a file or folder has as its template: a text, several by name, or None."""
    if path.is_file() and path.suffix == ".json":
        return _json(path).get("chat_template")
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if (path / "chat_template.jinja").is_file():
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    found = _json(path / "chat_template.json").get("chat_template")
    return config.get("chat_template") if found is None else found


def _choose(source: object, path: Path) -> tuple[str | None, str | None]:
    """Return (the template, that for chats with tools) of what was found. Raises DataError."""
    if source is None or isinstance(source, str):
        return source, None
    try:
        named = dict(source) if isinstance(source, dict) else {each["name"]: each["template"] for each in source}
    except (TypeError, KeyError) as error:
        raise DataError(f"the chat template in '{path}' is neither a text nor a list of named ones") from error
    if "default" not in named:
        raise DataError(
            f"'{path}' has the chat templates {', '.join(map(str, named))}, none of which is named 'default'; write "
            "the one that is meant to a .jinja file, and give that"
        )
    return named["default"], named.get("tool_use")


def _specials(*places: Mapping[str, object]) -> dict[str, str]:
    """Return the texts of special tokens by name; the first place that names one decides."""
    found: dict[str, str] = {}
    for place in places:
        for key, value in place.items():
            value = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(value, str):
                found.setdefault(key, value)
    return found


def _json(path: Path) -> dict[str, object]:
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return found
