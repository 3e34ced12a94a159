"""Read a JSON file of a checkpoint's folder."""

from __future__ import annotations

import json
from pathlib import Path

from hetjax.models.errors import ModelError
from hetjax.models.json_values import JsonObject

_MOST_BYTES = 1 << 28


def read_json(path: Path) -> JsonObject:
    """Return a JSON object of a checkpoint's folder. Raises ModelError where there is none."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ModelError(f"{path} is no regular file; fetch it again")
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise ModelError(f"{path} has {size:,} bytes, more than the {_MOST_BYTES:,} that such a file may have")
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}; give the folder of a Hugging Face checkpoint") from None
    except ModelError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}; fetch it again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no JSON object; fetch it again")
    return found
