"""Run a model of transformers in float64 all through, past the places where its code asks for float32 by name."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch
from transformers import modeling_rope_utils


class _WideTorch:
    """The module torch, where float32 is float64."""

    def __getattr__(self, name):
        return torch.float64 if name in ("float32", "float") else getattr(torch, name)


@contextlib.contextmanager
def float64_for_float32(*models: type[torch.nn.Module]) -> Iterator[None]:
    """Inside the block, the files of these models compute in float64 where they say float32.

    That is in RMSNorm, softmax of scores and of routers, rotary tables, and the logits of the loss. Rotary tables are
    made with a model, so that it must be built inside the block, too.
    """
    files = [sys.modules[model.__module__] for model in models] + [modeling_rope_utils]
    to_float = torch.Tensor.float
    try:
        for file in files:
            file.torch = _WideTorch()
        torch.Tensor.float = lambda tensor: tensor.double()
        yield
    finally:
        torch.Tensor.float = to_float
        for file in files:
            file.torch = torch
