"""The text of generated tokens."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from hetjax.data import Tokenizer

# R new tokens


def answer_text(ids: Int[np.ndarray, R], tokenizer: Tokenizer) -> str:
    """Return the text of generated ids up to the first that ends an answer."""
    return tokenizer.decode(ids[: answer_length(ids, tokenizer)])


def answer_length(ids: Int[np.ndarray, R], tokenizer: Tokenizer) -> int:
    """Return how many generated ids come before the first that ends an answer; all where none does."""
    ends = np.flatnonzero(np.isin(ids, tokenizer.stop_ids))
    return int(ends[0]) if len(ends) else len(ids)
