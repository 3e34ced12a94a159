"""Bring the media of a sample, however it has them, to names that its `MediaFolder` knows."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import PurePath

from hetjax.data.media.held_media import HeldMedia, MediaBytes
from hetjax.data.modalities import MODALITIES
from hetjax.errors import DataError


def kinds() -> tuple[str, ...]:
    """Return the kinds of media that there are: the names of the modalities."""
    return tuple(MODALITIES)


def lists() -> tuple[str, ...]:
    """Return the keys of a sample that hold several media of a kind."""
    return tuple(f"{kind}s" for kind in MODALITIES)


class NamedMedia:
    """The media of one sample by name; those without a name get one.

    Args:
        media: what its format holds.
        where: opens every error.
    """

    def __init__(self, media: Mapping[str, HeldMedia], where: str):
        self.by_name = dict(media)
        self._where = where

    def names(self, value: object, key: str) -> list[str]:
        """Return the names of one or several media that stand under `key`. Raises DataError."""
        values = value if isinstance(value, list | tuple) else [value]
        many = len(values) > 1
        return [self.name(each, f"{key}[{i}]" if many else key) for i, each in enumerate(values) if each is not None]

    def name(self, value: object, key: str) -> str:
        """Return the name of the media that `value` is: a name, bytes, or Hugging Face's {"bytes": …, "path": …}."""
        if isinstance(value, str):
            return value
        if isinstance(value, HeldMedia):
            return self._add(key, value)
        if isinstance(value, bytes):
            return self._add(key, MediaBytes(name=f"the bytes of '{key}'", data=value))
        if isinstance(value, Mapping):
            if isinstance(data := value.get("bytes"), bytes):
                file = value.get("path")
                return self._add(key, MediaBytes(name=file or f"the bytes of '{key}'", data=data))
            for each in ("path", "url"):
                if isinstance(value.get(each), str):
                    return value[each]
            if "array" in value:
                raise DataError(
                    f"{self._where}: '{key}' holds decoded samples; write the files' bytes instead "
                    "(dataset.cast_column(…, Audio(decode=False)))"
                )
        raise DataError(
            f"{self._where}: '{key}' must be the path of a file, its bytes, or {{'bytes': …, 'path': …}}, not "
            f"{type(value).__name__}"
        )

    def from_base64(self, data: object, key: str) -> str:
        """Return the name of media in base64. Raises DataError."""
        try:
            return self._add(key, MediaBytes(name=f"the data of '{key}'", data=base64.b64decode(data, validate=True)))
        except (TypeError, ValueError, binascii.Error) as error:
            raise DataError(f"{self._where}: '{key}' must be base64: {error}") from error

    def _add(self, key: str, media: HeldMedia) -> str:
        name, number = key, 1
        while self.by_name.get(name, media) is not media:
            name, number = f"{key}#{number}", number + 1
        self.by_name[name] = media
        return name


def kind_of(name: str) -> str | None:
    """Return which kind of media a file's name tells by its suffix; None where it tells none."""
    suffix = PurePath(f"x.{name}").suffix[1:].lower()
    return next((kind for kind, modality in MODALITIES.items() if suffix in modality.suffixes), None)
