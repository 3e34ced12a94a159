"""Types of what JSON files hold: config.json, headers and indices of tensor files."""

from __future__ import annotations

from typing import Union

Json = Union[str, int, float, bool, None, list["Json"], dict[str, "Json"]]  # noqa: UP007  a name in a string has no `|`
"""A JSON value."""
JsonObject = dict[str, Json]
"""A JSON object; what only reads one takes a Mapping[str, Json]."""
