"""Check numbers of settings against the least that they may be."""

from __future__ import annotations

from hetjax.errors import ConfigError


def check_least(settings: object, least: int, *names: str, section: str = "") -> None:
    """Raise ConfigError for a setting that is less than it may be; null is always fine."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ConfigError(f"{section}{name} is {value}; give {least} or more")
