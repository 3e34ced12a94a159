"""Read a config.json, and check that its keys ask for nothing that is not built."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from hetjax.models.errors import ModelError
from hetjax.models.json_values import Json, JsonObject


def read_json(path: Path) -> JsonObject:
    """Return a JSON object of a checkpoint's folder. Raises ModelError where there is none."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}; give the folder of a Hugging Face checkpoint") from None
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}; fetch it again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no JSON object; fetch it again")
    return found


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
