"""Check the numbers of a config; each check raises ModelError with the config's name, the field and its value."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Protocol

from hetjax.models.errors import ModelError


class Config(Protocol):
    """An instance of a dataclass."""

    __dataclass_fields__: dict[str, dataclasses.Field]


def check_positive(config: Config, fields: Iterable[str] | None = None) -> None:
    """Raise ModelError unless these fields, or all fields that hold a number, are above 0; None and flags pass."""
    for name in [field.name for field in dataclasses.fields(config)] if fields is None else fields:
        value = getattr(config, name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            raise ModelError(f"{_name(config)}: {name} = {value} must be positive")


def check_divides(config: Config, divisor: str, whole: str) -> None:
    """Raise ModelError unless the field `divisor` divides the field `whole`."""
    a, b = getattr(config, whole), getattr(config, divisor)
    if a % b:
        raise ModelError(
            f"{_name(config)}: {whole} % {divisor} = {a} % {b} = {a % b} must be 0; change either of the two"
        )


def check_projector(config: Config) -> None:
    """Raise ModelError where one of `projector_width` and `output_width` is given without the other."""
    hidden, output = config.projector_width, config.output_width
    if (hidden is None) != (output is None):
        raise ModelError(
            f"{_name(config)}: projector_width = {hidden} and output_width = {output}; give both for a projector, or "
            "neither for the encoder's own features"
        )


def _name(config: Config) -> str:
    return type(config).__name__
