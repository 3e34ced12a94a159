"""Explain the errors of a parser so that a user can fix them, for the command lines of train.py and of the tools.

It imports neither the settings nor JAX, for `hetjax launch` needs it, too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import jsonargparse

PARSE_ERRORS = (jsonargparse.ArgumentError, TypeError, OSError)
"""What a parser raises for a command line that it cannot take."""


_MOVED = {
    r"Group 'data' does not accept option 'image_size'|--data\.image_size": "images take model.vision.image_size now",
    r"Group 'data' does not accept option 'images_per_sample'|--data\.images_per_sample": "give data.processor.images",
    r"Group 'data' does not accept option 'max_shift'|--data\.max_shift": "give data.processor.max_shift",
    r"Parser key \"data\.processor\":\s+Unable to load config .null": "leave data.processor out, or give its settings",
}
"""What took the place of settings that there were, by what the parser says of them."""


def explain(message: str, known: Sequence[str], *, help_line: str) -> str:
    """Return a parser's message, with the name that was likely meant where one is unknown.

    Args:
        message: What the parser raised.
        known: The names that the command line may use.
        help_line: Where a user finds them, e.g. "`hetjax --help` lists the tools".
    """
    message = _reason_by_type(message)
    for pattern, advice in _MOVED.items():
        if re.search(pattern, message):
            return f"{message.strip()}\n  {advice}; {help_line}"
    named = re.findall(r"Option '([\w.]+)' is not accepted", message)
    for word in named or re.findall(r"[A-Za-z_][\w.]*", message):
        near = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
        if near and word not in known:
            return f"{message.strip()}\n  did you mean '{near[0]}'? {help_line}"
    return f"{message.strip()}\n  {help_line}"


def _reason_by_type(message: str) -> str:
    """Return why a setting is of none of the types that it may have, a line each; any other message as it is."""
    key = re.search(r'Parser key "([^"]+)":\s+Does not validate against any of the Union', message)
    reasons = re.findall(r"Problem with given class_path '(?:\w+\.)*(\w+)':\s*\n\s*(.+)", message)
    if key is None or not reasons:
        return message
    return "\n".join([f"{key[1]} does not fit:", *(f"  as {kind}: {reason}" for kind, reason in reasons)])
