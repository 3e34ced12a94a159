"""Write settings as YAML that gives the same settings when it is read again."""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml

# Texts that YAML 1.2 and the reader of settings take for numbers, and PyYAML's writer for texts.
_LIKE_A_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")


class _Writer(yaml.SafeDumper):
    """PyYAML's writer, with quotes around texts that look like numbers."""


def _text(writer: _Writer, text: str) -> yaml.ScalarNode:
    style = "'" if _LIKE_A_NUMBER.fullmatch(text) else None
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Writer.add_representer(str, _text)


def plain_yaml(settings: Mapping[str, object]) -> str:
    """Return settings as YAML, in their order."""
    return yaml.dump(settings, Dumper=_Writer, sort_keys=False)
