"""Read a config.json, and check that its keys ask for nothing that is not built."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from hetjax.models.errors import ModelError
from hetjax.models.json_values import Json, JsonObject

_SIZES = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim",
}  # fmt: skip
"""Keys whose value is a number above 0 in every config.json that has them."""
_MOST = 10**8
_PARTS = re.compile(r".*(layers|heads|experts|groups)")
"""Keys whose value is a number of parts, each of which would be made."""
_MOST_PARTS = 10**5
_GROUPS = re.compile(r".*_config|rope_scaling|rope_parameters")
"""Keys whose value is an object."""


def check_values(hf: Mapping[str, Json], where: str = "config.json") -> None:
    """Raise ModelError for a value of config.json that no model has, such as a number of something that is none."""
    for key, value in hf.items():
        wanted = None
        if _GROUPS.fullmatch(key):
            wanted = None if value is None or isinstance(value, dict) else "an object"
        elif key in _SIZES:
            most = _MOST_PARTS if _PARTS.fullmatch(key) else _MOST
            wanted = None if value is None or _is_size(value, most) else f"a whole number from 1 to {most:,}"
        elif _PARTS.fullmatch(key) and isinstance(value, int | float) and not value <= _MOST_PARTS:
            wanted = f"{_MOST_PARTS:,} or less"
        if wanted is not None:
            raise ModelError(f"{where}: {key} = {shown(value)} must be {wanted}; fetch the file again")
        if isinstance(value, dict):
            check_values(value, f"{where}: {key}")


def _is_size(value: Json, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def shown(value: Json) -> str:
    """Return a value as a message shows it, on one line and cut to a length."""
    text = repr(value).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:80]}..."


def check_keys(hf: Mapping[str, Json], built: Mapping[str, Collection[Json]]) -> None:
    """Raise ModelError where a key of config.json asks for something else than what is built."""
    for key, values in built.items():
        if key in hf and hf[key] not in values:
            raise ModelError(
                f"config.json of {hf.get('model_type')}: {key} = {hf[key]!r} is not supported; "
                f"it must be {' or '.join(map(repr, values))}"
            )


def required_keys(hf: Mapping[str, Json], **names: str) -> JsonObject:
    """Return {our name: the value of the key in config.json}. Raises ModelError where a key lacks or is null."""
    lacking = [key for key in names.values() if hf.get(key) is None]
    if lacking:
        raise ModelError(f"config.json of {hf.get('model_type')} lacks {', '.join(lacking)}")
    return {ours: hf[theirs] for ours, theirs in names.items()}
