"""Say whether a model is called to train or to infer, for layers that differ in the two; training by default.

Whoever calls a model to infer does so inside of `inference`, which holds for all layers traced in the block.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

_infers: contextvars.ContextVar[bool] = contextvars.ContextVar("infers", default=False)


def infers() -> bool:
    """Return whether the call is one that infers: state stays as it is, and outputs depend on no other sample."""
    return _infers.get()


@contextlib.contextmanager
def inference() -> Iterator[None]:
    """Make models that are called, or traced, inside the block infer."""
    token = _infers.set(True)
    try:
        yield
    finally:
        _infers.reset(token)
