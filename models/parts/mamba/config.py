"""Sizes of a Mamba-2 layer."""

from __future__ import annotations

import dataclasses

from hetjax.models.checks import check_divides, check_positive
from hetjax.models.errors import ModelError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MambaConfig:
    """Sizes of a Mamba-2 layer."""

    heads: int
    """Number of heads, each with a state of its own."""
    head_dim: int
    """Inputs of one head."""
    groups: int
    """Groups of heads that share B and C, and are normalized together; divides heads."""
    state: int
    """Length of B and C: the state of a head has head_dim * state numbers."""
    conv_kernel: int = 4
    """Positions that the convolution ahead of the recurrence sees: a position and those just before."""
    chunk: int = 128
    """Positions computed at once, by products of chunk * chunk; results do not depend on it."""
    norm_epsilon: float = 1e-5
    """Added to the mean square in the gated norm."""
    min_dt: float | None = None
    """The least time step of a position; null for none."""

    def __post_init__(self):
        check_positive(self, ("heads", "head_dim", "groups", "state", "chunk", "norm_epsilon"))
        if self.conv_kernel < 2:
            raise ModelError(
                f"MambaConfig: conv_kernel = {self.conv_kernel} must be 2 or more, for a convolution sees more than "
                "its own position"
            )
        check_divides(self, "groups", "heads")
        if self.min_dt is not None and self.min_dt < 0:
            raise ModelError(f"MambaConfig: min_dt = {self.min_dt} must not be negative; give null for none")

    def multiplications(self, width: int) -> int:
        """Return the multiplications a token, in products with weights, of a layer between streams of `width`."""
        inner = self.heads * self.head_dim
        return width * (3 * inner + 2 * self.groups * self.state + self.heads)
