"""Read a config.json, and check that its keys ask for nothing that is not built."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from hetjax.models.errors import ModelError
from hetjax.models.json_values import Json, JsonObject

_COUNTS = re.compile(r"n(um)?_.*|.*_(size|dim|layers|heads|groups|width|length|per_tok)|.*_(size|dim|layers)_.*")
"""Keys of config.json whose value is a number of something."""
_SIZES = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim",
}  # fmt: skip
"""Those that no model has without."""
_RATIOS = re.compile(r"(multiplier|ratio|scale|scaling|std|factor|eps|prob|dropout|rate|params?|parameters)$")
_MOST = 10**8
_GROUPS = re.compile(r".*_config|rope_scaling|rope_parameters")
"""Keys whose value is an object."""


def check_values(hf: Mapping[str, Json], where: str = "config.json") -> None:
    """Raise ModelError for a value of config.json that no model has, such as a number of something that is none."""
    for key, value in hf.items():
        wanted = None
        if _GROUPS.fullmatch(key):
            wanted = None if value is None or isinstance(value, dict) else "an object"
        elif key in _SIZES:
            wanted = None if value is None or _is_count(value, least=1) else "a whole number above 0"
        elif _COUNTS.fullmatch(key) and not _RATIOS.search(key) and not isinstance(value, str | bool | dict | None):
            each = value if isinstance(value, list) else [value]
            wanted = None if all(map(_is_count, each)) else "a whole number"
        if wanted is not None:
            raise ModelError(f"{where}: {key} = {shown(value)} must be {wanted}; fetch the file again")
        if isinstance(value, dict):
            check_values(value, f"{where}: {key}")


def _is_count(value: Json, least: int = -_MOST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _MOST


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
