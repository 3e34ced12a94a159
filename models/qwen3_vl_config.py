"""Sizes of Qwen3-VL's language model."""

from __future__ import annotations

import dataclasses

from hetjax.models.decoder_config import DecoderConfig
from hetjax.models.errors import ModelError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3VlConfig(DecoderConfig):
    """Sizes of a decoder whose positions have a time, a row and a column, and whose inner layers read images."""

    rope_sections: tuple[int, int, int]
    """Channel pairs of a head that time, rows and columns turn; interleaved, time, row, column, time, row, column, …,
    and time where the other two have used up theirs. Their sum is head_dim / 2."""
    deepstack: int = 3
    """Depths of image tokens: those of depth i are added behind layer i."""
    query_key_norm: bool = True
    """An RMSNorm over each head of queries and of keys, before the rotation."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "rope_sections", tuple(self.rope_sections))  # a YAML has a list
        if len(self.rope_sections) != 3 or sum(self.rope_sections) != self.head_dim // 2:
            raise ModelError(
                f"Qwen3VlConfig: rope_sections = {self.rope_sections} must be three numbers of the sum head_dim / 2 = "
                f"{self.head_dim // 2}"
            )
        if any(3 * size > self.head_dim // 2 + 2 for size in self.rope_sections[1:]) or self.rope_scaling is not None:
            raise ModelError(
                f"Qwen3VlConfig: rope_sections = {self.rope_sections} with rope_scaling = {self.rope_scaling}; rows "
                "and columns have a third of the channel pairs at most, and no scaling is built"
            )
        if not 0 <= self.deepstack <= min(3, self.layers):
            raise ModelError(
                f"Qwen3VlConfig: deepstack = {self.deepstack} must be 0 to 3, and no more than layers = {self.layers}"
            )

    @property
    def rope_axes(self) -> tuple[int, ...]:
        """The axis that turns each channel pair: 0 time, 1 row, 2 column."""
        _, rows, columns = self.rope_sections
        sizes = {1: rows, 2: columns}
        return tuple(pair % 3 if pair // 3 < sizes.get(pair % 3, 0) else 0 for pair in range(self.head_dim // 2))

    @property
    def deepstack_ports(self) -> tuple[str, ...]:
        """The ports of the tokens of each depth."""
        return tuple(f"deepstack_{depth}" for depth in range(self.deepstack))
