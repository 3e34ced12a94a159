"""Counts every way in which Python code waits for a device or reads an array on the host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import pytest


@contextlib.contextmanager
def count_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Inside the block, the list grows by the name of each wait or host read.

    The transfer guard alone does not see all of them on a CPU. `_value` is where JAX itself reads a whole
    array to the host, be it for numpy or because a `device_put` found no way from device to device.
    """
    waits: list[str] = []
    array_type = type(jax.numpy.zeros(()))

    def noting(name, original):
        def noted(*args, **kwargs):
            waits.append(name)
            return original(*args, **kwargs)

        return noted

    with monkeypatch.context() as patch:
        for name in ("block_until_ready", "__array__", "__float__", "__int__", "__bool__", "item", "tolist"):
            patch.setattr(array_type, name, noting(name, getattr(array_type, name)))
        patch.setattr(array_type, "_value", property(noting("_value", array_type._value.fget)))
        patch.setattr(jax, "block_until_ready", noting("jax.block_until_ready", jax.block_until_ready))
        patch.setattr(jax, "device_get", noting("jax.device_get", jax.device_get))
        with jax.transfer_guard_device_to_host("disallow"):
            yield waits
