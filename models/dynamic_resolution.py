"""Choose how large an image or a video frame becomes before it is split into patches. On the host, without arrays.

An image keeps about its own size, as a grid of patches whose number lies between two bounds: by the rule of Nemotron 3
Nano Omni, or by that of Qwen's models. The frames of a video get about a fixed number of patches, in its own aspect.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, get_args

from hetjax.models.checks import check_positive
from hetjax.models.errors import ModelError

Grid = tuple[int, int]
"""Rows and columns of patches."""
Rule = Literal["nemotron", "qwen"]
"""How an image's sides become multiples of a token's, within the bounds: up, and scaled by whole patches; or to the
nearest, and else scaled in pixels (`smart_resize` of Qwen2-VL)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicResolution:
    """Bounds of a patch grid; the defaults are those of Nemotron 3 Nano Omni."""

    patch_size: int = 16
    """Side of a square patch, in pixels."""
    merge: int = 2
    """Side of the square of patches that become one token; divides both sides of every grid."""
    min_patches: int = 1024
    """An image of fewer patches is enlarged to about this many."""
    max_patches: int = 13312
    """The most patches of an image."""
    video_patches: int = 1024
    """About how many patches a frame of a video gets; rounding may add some."""
    rule: Rule = "nemotron"
    """How the sides of an image are rounded: nemotron, or qwen as Qwen-VL does."""
    keep_video_aspect: bool = True
    """Whether frames keep their aspect; else they become squares."""

    def __post_init__(self):
        check_positive(self)
        if self.rule not in get_args(Rule):
            raise ModelError(f"DynamicResolution: rule is {self.rule!r}; give one of {', '.join(get_args(Rule))}")
        if self.min_patches > self.max_patches:
            raise ModelError(
                f"DynamicResolution: min_patches = {self.min_patches} > max_patches = {self.max_patches}; "
                "lower the one or raise the other"
            )
        if min(self.max_patches, self.video_patches) < self.merge**2:
            raise ModelError(
                f"DynamicResolution: max_patches = {self.max_patches} and video_patches = {self.video_patches} must be "
                f"merge² = {self.merge**2} or more, so that an image has a token"
            )

    def image_grid(self, height: int, width: int, budget: int | None = None) -> Grid:
        """Return the patch grid of an image of so many pixels, of `budget` patches at most (max_patches without)."""
        budget = self.max_patches if budget is None else budget
        if self.rule == "qwen":
            return self._nearest_grid(*self._checked(height, width), budget)
        sides = [round(pixels / self.patch_size + 0.5) for pixels in self._checked(height, width)]
        shrink = min(math.sqrt(budget / math.prod(sides)), 1.0)
        sides = [math.floor(shrink * side) for side in sides]
        if 0 in sides:  # an image so much longer than wide that it would have no patch across
            sides = [min(side, budget // self.merge) or self.merge for side in sides]
        if budget > self.min_patches > math.prod(sides):
            grow = math.sqrt(self.min_patches / math.prod(sides))
            sides = [math.ceil(grow * side) for side in sides]
        for axis in (0, 1):
            rest = sides[axis] % self.merge
            up, other = sides[axis] - rest + self.merge, sides[1 - axis]
            if rest:
                sides[axis] = up if up * other <= budget else max(self.merge, sides[axis] - rest)
        return sides[0], sides[1]

    def _nearest_grid(self, height: int, width: int, budget: int) -> Grid:
        side = self.patch_size * self.merge
        most, least = (count * self.patch_size**2 for count in (budget, min(self.min_patches, budget)))
        sizes = [round(pixels / side) * side for pixels in (height, width)]
        if math.prod(sizes) > most:
            shrink = math.sqrt(height * width / most)
            sizes = [max(side, math.floor(pixels / shrink / side) * side) for pixels in (height, width)]
        elif math.prod(sizes) < least:
            grow = math.sqrt(least / (height * width))
            sizes = [math.ceil(pixels * grow / side) * side for pixels in (height, width)]
        return sizes[0] // self.patch_size, sizes[1] // self.patch_size

    def image_grids(self, sizes: Sequence[tuple[int, int]], context: int, text_tokens: int = 0) -> list[Grid]:
        """Return the grids of several images, by their (height, width), that share a context of tokens with a text.

        Images that do not fit together are scaled down by the same factor until they do, but none below `min_patches`:
        what does not fit then is the caller's to leave out.
        """
        available = max((context - 4 - text_tokens) * self.merge**2, self.min_patches * len(sizes))
        budgets = [min(available, self.max_patches)] * len(sizes)
        while True:
            grids = [self.image_grid(*size, budget=budget) for size, budget in zip(sizes, budgets, strict=True)]
            counts = [math.prod(grid) for grid in grids]
            if sum(counts) <= available or max(budgets, default=0) <= self.min_patches:
                return grids
            scaled = [max(self.min_patches, int(count * available / sum(counts))) for count in counts]
            # Every round lowers some budget, or all go to the least.
            shrinks = any(new < count for new, count in zip(scaled, counts, strict=True))
            budgets = scaled if shrinks else [self.min_patches] * len(sizes)

    def video_grid(self, height: int, width: int) -> Grid:
        """Return the patch grid of every frame of a video."""
        height, width = self._checked(height, width)
        if not self.keep_video_aspect:
            side = max(self.merge, math.isqrt(self.video_patches) // self.merge * self.merge)
            return side, side
        aspect = width / height
        sides = [
            max(round(math.sqrt(patches)), 1) for patches in (self.video_patches / aspect, self.video_patches * aspect)
        ]
        up = [-(-side // self.merge) * self.merge for side in sides]
        if math.prod(up) <= self.video_patches:
            return up[0], up[1]
        down = [max(self.merge, side // self.merge * self.merge) for side in sides]
        return down[0], down[1]

    def tokens(self, grid: Grid) -> int:
        """Return the tokens of an image, or of a tubelet, with this grid."""
        return math.prod(grid) // self.merge**2

    def _checked(self, height: int, width: int) -> tuple[int, int]:
        if height <= 0 or width <= 0:
            raise ModelError(f"DynamicResolution: an image of {height} x {width} pixels; both must be positive")
        return height, width
