"""What encoders share: every image, tubelet or clip is a sequence of its own, and stages pass `hidden`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from flax import nnx

from hetjax.models.stages import LayerCosts, cut_stage


class Encoder(nnx.Module):
    """Inputs to tokens of the language model's width, by a stack of layers that can be cut into pipeline stages.

    Attributes:
        first_stage: attributes that the first stage alone has, beside its layers.
        last_stage: attributes that the last stage alone has.
    """

    first_stage: ClassVar[tuple[str, ...]]
    last_stage: ClassVar[tuple[str, ...]]

    @property
    def optional_ports(self) -> tuple[str, ...]:
        """Those of `input_ports` that a call may leave out: none."""
        return ()

    @property
    def independent_samples(self) -> bool:
        """No token of a sample sees another sample."""
        return True

    @property
    def layer_costs(self) -> LayerCosts:
        """Multiplications a token of a layer in products with weights, to cut stages of equal cost."""
        first, layer, last = self.multiplications()
        return LayerCosts(first=first, layers=(layer,) * self.config.layers, last=last)

    def multiplications(self) -> tuple[float, float, float]:
        """Return those of (what comes before the layers, each layer, what comes after them), a token of a layer."""
        raise NotImplementedError

    def stage(self, index: int, count: int, layers: Sequence[int] | None = None) -> Self:
        """Return pipeline stage `index` of `count`; `hidden` passes between stages, as `cut_stage` says."""
        last = [name for name in self.last_stage if hasattr(self, name)]
        return cut_stage(self, index, count, layers, first=self.first_stage, last=last)
