"""Take a sample's keys from the columns that the settings name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from hetjax.data.schemas.media_values import kinds, lists
from hetjax.errors import ConfigError, DataError

_TEXTS = (
    *("messages", "tools", "conversations", "system"),
    *("instruction", "input", "output", "history"),
    *("prompt", "completion", "response", "question", "answer"),
    *("text", "caption"),
)

Columns = Mapping[str, str | list[str]]


def keys() -> tuple[str, ...]:
    """Return what `columns` may name: every key that a schema reads, those of each modality among them."""
    return (*_TEXTS, *kinds(), *lists())


def check_columns(columns: object, where: str) -> Columns:
    """Return a column map that may be one. Raises ConfigError, which `where` opens."""
    if not isinstance(columns, Mapping) or not columns:
        raise ConfigError(f"{where} must map keys to columns, as {{messages: conversations}}, not {columns!r}")
    for key, column in columns.items():
        if key not in keys():
            raise ConfigError(
                f"{where} has the key '{key}', which no schema reads{likely(key, keys())}; keys are {', '.join(keys())}"
            )
        names = column if isinstance(column, list) else [column]
        if not names or not all(isinstance(name, str) and name for name in names):
            raise ConfigError(f"{where}.{key} must be the name of a column or a list of them, not {column!r}")
    return columns


def mapped(record: Mapping[str, object], columns: Columns, where: str) -> dict[str, object]:
    """Return a sample of the columns that `columns` names, under its keys; all other columns are left out.

    "a.b" is the key b of the object a, where no column is called so. A sample may lack some of them, but not all.

    Raises:
        DataError: it has none of the columns.
    """
    found: dict[str, object] = {}
    for key, column in columns.items():
        if isinstance(column, str):
            value = _column(record, column)
        else:
            value = [each for each in (_column(record, name) for name in column) if each is not None]
        if value is not None:
            found[key] = value
    if not found:
        wanted = [name for column in columns.values() for name in ([column] if isinstance(column, str) else column)]
        raise DataError(
            f"{where}: the sample has none of the columns {', '.join(wanted)}{likely(wanted[0], record)}; it has "
            f"{', '.join(record) or 'no column'}"
        )
    return found


def likely(name: str, known: Iterable[str]) -> str:
    """Return words that name the one of `known` that is likely meant, or none."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def without(sample: Mapping[str, object], *keys: str) -> dict[str, object]:
    """Return a sample without these keys."""
    return {key: value for key, value in sample.items() if key not in keys}


def _column(record: Mapping[str, object], name: str) -> object:
    if name in record:
        return record[name]
    first, dot, rest = name.partition(".")
    inner = record.get(first)
    return _column(inner, rest) if dot and isinstance(inner, Mapping) else None
