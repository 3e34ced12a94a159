"""Apply chat templates: from turns to the text that a language model was trained on.

A checkpoint's template is a Jinja program in `chat_template.jinja`, or in `tokenizer_config.json`. It runs in Jinja's
sandbox with what `transformers` gives it: raise_exception, strftime_now, tojson, loop controls and the `generation`
block that marks what an assistant says.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

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

# Noncharacters of Unicode, which no text may carry: they go through a template unseen.
SAID_START, SAID_END = "\ufdd4", "\ufdd5"
"""Around what a `generation` block says."""


class ChatTemplate:
    """A chat template, compiled.

    Args:
        source: The Jinja program.
        specials: Text of the special tokens that it may name (bos_token, eos_token, ...).

    Attributes:
        marks_answers: Whether it has `generation` blocks around what an assistant says.

    Raises DataError where the program is malformed.
    """

    def __init__(self, source: str = DEFAULT_TEMPLATE, *, specials: Mapping[str, str] | None = None):
        self.source, self.specials = source, dict(specials or {})
        self.marks_answers = "generation" in source and "endgeneration" in source
        try:
            self._program = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template is malformed: {error}; give one that Jinja can read") from error

    def render(
        self, messages: Sequence[Mapping[str, object]], *, add_generation_prompt: bool, **options: object
    ) -> str:
        """Return the text of a chat; `options` are what the template may ask for (tools, enable_thinking).

        Raises:
            DataError: the template refuses the messages.
        """
        try:
            return self._program.render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **{**self.specials, **options}
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise DataError(f"the chat template refuses the messages: {error}") from error


def load_template(folder: str | Path | None) -> ChatTemplate:
    """Load the template of a checkpoint's folder, or the built-in one where there is none.

    Raises:
        DataError: a file of the folder cannot be read.
    """
    if folder is None:
        return ChatTemplate()
    folder = Path(folder)
    try:
        config = _json(folder / "tokenizer_config.json")
        file = folder / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    except (OSError, ValueError) as error:
        raise DataError(f"the chat template in '{folder}' cannot be read: {error}; repair the file") from error
    if isinstance(source, list):  # several by name
        named = {item["name"]: item["template"] for item in source}
        source = named.get("default")
    specials = {key: _text(value) for key, value in config.items() if key.endswith("_token") and value is not None}
    return ChatTemplate(source or DEFAULT_TEMPLATE, specials={k: v for k, v in specials.items() if v is not None})


def _json(path: Path) -> dict[str, object]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _text(value: object) -> str | None:
    """Return a special token as tokenizer_config.json gives it: its text, or an object with it as "content"."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`, what an assistant says, between the marks for it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return SAID_START + caller() + SAID_END


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: object, ensure_ascii: bool = False, **options: object) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment
