"""The settings of the sets of held-out samples."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from hetjax.data.source_config import EvalShare, SourceConfig, eval_source_or_share
from hetjax.errors import ConfigError

_NAME = re.compile(r"[\w.-]+")
_SETTINGS = ("sources", "metrics", "loss")
# What stands for something else, in settings or in the log.
_NO_NAMES = (*_SETTINGS, *(field.name for field in dataclasses.fields(SourceConfig)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutSet:
    """One set of held-out samples.

    Attributes:
        name: its name; None for the only one.
        samples: the sources that it is read from, or the share of the training samples that it is.
        metrics: the names of the metrics of its answers; None for those of `eval.metrics`.
        loss: whether its loss is computed; None for `eval.loss`.
    """

    name: str | None
    samples: tuple[SourceConfig, ...] | EvalShare
    metrics: tuple[str, ...] | None = None
    loss: bool | None = None

    @property
    def prefix(self) -> str:
        """Return what its numbers are called in the log: "eval", or "eval/NAME"."""
        return "eval" if self.name is None else f"eval/{self.name}"


def held_out_sets(given: object) -> tuple[HeldOutSet, ...]:
    """Return the sets that `data.eval` names; none for null.

    It is one set, as a path, the settings of a source, a list of these, a share, or {sources: (any of these), metrics:
    [...], loss: ...}; or several, as a mapping from their names to the same. Raises ConfigError.
    """
    if given is None:
        return ()
    if not isinstance(given, Mapping) or {"path", "share", "sources"} & set(given):
        return (_set(None, given, "data.eval"),)
    if not given:
        raise ConfigError("data.eval is an empty mapping; give a path, sets by name, or null")
    sets = tuple(_set(_checked(name), each, f"data.eval.{name}") for name, each in given.items())
    shares = [each.name for each in sets if isinstance(each.samples, EvalShare)]
    if len(shares) > 1:
        raise ConfigError(f"data.eval: {' and '.join(shares)} are both a share of the training samples; make one of it")
    return sets


def _checked(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.startswith("blank_") or name in _NO_NAMES:
        raise ConfigError(
            f"data.eval names a set {name!r}; give it a name of letters, digits, '_', '-' and '.', none of "
            f"{', '.join(_NO_NAMES)}"
        )
    return name


def _set(name: str | None, given: object, where: str) -> HeldOutSet:
    if not isinstance(given, Mapping) or "sources" not in given:
        return HeldOutSet(name=name, samples=eval_source_or_share(given, where))
    for key in given:
        if key not in _SETTINGS:
            raise ConfigError(f"{where} has no setting '{key}'; beside sources it may have metrics and loss")
    metrics, loss = given.get("metrics"), given.get("loss")
    if metrics is not None and (isinstance(metrics, str) or not isinstance(metrics, Sequence)):
        raise ConfigError(f"{where}.metrics is {metrics!r}; give a list of names, such as [anls]")
    if not (loss is None or isinstance(loss, bool)):
        raise ConfigError(f"{where}.loss is {loss!r}; give true or false")
    samples = eval_source_or_share(given["sources"], f"{where}.sources")
    return HeldOutSet(name=name, samples=samples, metrics=None if metrics is None else tuple(metrics), loss=loss)
