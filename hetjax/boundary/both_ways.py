"""The two ways of a tensor over a boundary, whatever carries it either way."""

from __future__ import annotations

import abc
import functools
from typing import Generic, Protocol, Self, TypeVar

import jax


class OneWay(Protocol):
    """One way over a boundary, compiled once for all calls."""

    @property
    def is_local(self) -> bool:
        """Whether this process has a part in it."""

    @property
    def arriving(self) -> jax.ShapeDtypeStruct:
        """Shape, dtype and sharding of the tensor at the destination."""

    def compile(self) -> object:
        """Compile what this process runs of it; harmless to call twice."""


Way = TypeVar("Way", bound=OneWay)


class BothWays(abc.ABC, Generic[Way]):
    """A way forward, and one back for the gradient, which is made when it is asked for.

    Args:
        forward: the way of the tensor.
        gradient: whether a gradient comes back.
    """

    def __init__(self, forward: Way, *, gradient: bool):
        self.forward = forward
        self._gradient = gradient

    @functools.cached_property
    def backward(self) -> Way | None:
        """The way of the gradient, None where none comes back. Raises BoundaryError as the way forward does."""
        return self._make_backward() if self._gradient else None

    @abc.abstractmethod
    def _make_backward(self) -> Way:
        """Return the way of the gradient."""

    @property
    def is_local(self) -> bool:
        """Whether this process has a part in it."""
        return self.forward.is_local

    @property
    def arriving(self) -> jax.ShapeDtypeStruct:
        """Shape, dtype and sharding of the tensor at the destination."""
        return self.forward.arriving

    def compile(self) -> Self:
        """Compile what this process runs of either way; harmless to call twice."""
        self.forward.compile()
        if self.backward is not None:
            self.backward.compile()
        return self
