"""Check the keys of samples and of their messages, so that none is left out in silence."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping

from hetjax.errors import DataError

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Under which an assistant's message may have its reasoning; templates read the first, or the second."""
IGNORED_IN_SILENCE = frozenset({"tool_call_id", "id", "name"})
"""Keys of messages that say what their order says as well: which call a tool answers."""


def check_sample_keys(record: Iterable[str], known: Collection[str], where: str, ignore: Collection[str]) -> None:
    """Raise DataError for a key of a sample or a message that nothing reads, with the one that is likely meant."""
    for key in record:
        if key not in known and key not in ignore:
            raise DataError(f"{where}: nothing reads the key '{key}'; {_advice(key, known)}")


def check_message_keys(others: Iterable[str], number: int, template: str) -> None:
    """Raise DataError for a key of message `number` whose name the source of the chat template does not have.

    Reasoning and tool calls are looked for in the text that the template makes (`hetjax.data.chat.shown`).
    """
    for key in others:
        if key in (*REASONING_KEYS, "tool_calls") or key in IGNORED_IN_SILENCE or key in template:
            continue
        known = ("role", "content", *REASONING_KEYS[:1], "tool_calls", "weight", "train")
        raise DataError(f"message {number}: the chat template does not read its key '{key}'; {_advice(key, known)}")


def _advice(key: str, known: Collection[str]) -> str:
    likely = difflib.get_close_matches(str(key).lower(), known, n=1, cutoff=0.6)
    meant = f"'{likely[0]}' is likely meant" if likely else f"known keys are {', '.join(known)}"
    return f"{meant}; rename or remove it, or list it in data.ignore_keys"


def loss_weight(given: Mapping[str, object], role: str) -> float:
    """Return what a message counts in the loss, by its keys "weight" (a number) and "train" (whether at all).

    Raises DataError for another value, or where a message that is no assistant's would count.
    """
    weight = 1.0
    for key, value in given.items():
        if value is None:
            continue
        is_number = isinstance(value, bool) or (isinstance(value, int | float) and key == "weight")
        if not is_number or not math.isfinite(value) or value < 0:
            wanted = "true or false" if key == "train" else "a number of 0 or more"
            raise DataError(f"'{key}' must be {wanted}, not {value!r}")
        if value and role != "assistant":
            raise DataError(f"'{key}' is {value!r}, but the loss counts what assistants say, not a {role}; remove it")
        weight *= float(value)
    return weight
