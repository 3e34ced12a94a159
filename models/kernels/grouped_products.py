"""Multiply the rows of each expert by its own matrix, without a row more than blocks ask for.

There are three ways to do so, which agree in what they compute:

    hopper      kernels for Hopper GPUs, in 16 bits a number
    blocks      plain operations over equal blocks of rows of one expert; any dtype on CPUs and other GPUs
    ragged_dot  `jax.lax.ragged_dot`, which TPUs have a kernel for; CPUs and GPUs would repeat each row for each expert
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hetjax.models.kernels.block_products import block_kernel_gradient, block_product, block_rows
from hetjax.models.kernels.hopper_products import (
    ROWS,
    TILE,
    can_multiply,
    hopper_kernel_gradient,
    hopper_product,
)

# M places for rows · E experts of this device · D columns of the rows · F columns of the result

Method = Literal["hopper", "blocks", "ragged_dot"]


def choose_method(dtype: jnp.dtype, width: int, device: jax.Device) -> Method:
    """Return the way to multiply rows of a width on devices like this one."""
    if width % TILE == 0 and can_multiply(dtype, device):
        return "hopper"
    return "blocks" if device.platform in ("cpu", "gpu") else "ragged_dot"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupedProducts:
    """Products of the rows of each expert with its matrix.

    Attributes:
        method: how they are computed.
        count: number of experts, E.
        rows: the most rows of all experts.
    """

    method: Method
    count: int
    rows: int

    @property
    def block(self) -> int:
        """What each expert's first place is a multiple of."""
        return block_rows(self.rows, self.count) if self.method == "blocks" else 1

    @property
    def places(self) -> int:
        """Number of places for rows, M: with those that fill up blocks."""
        if self.method == "hopper":
            return -(self.rows // -ROWS) * ROWS
        # Every expert's last block may hold a single row.
        return (self.rows + self.count * (self.block - 1)) // self.block * self.block

    @property
    def width_unit(self) -> int:
        """What the hidden width of experts is filled up to a multiple of."""
        return TILE if self.method == "hopper" else 1

    def multiply(
        self,
        x: Float[Array, "M _"],
        kernel: Float[Array, "E D F"],
        sizes: Int[Array, " E"],
        *,
        transposed: bool = False,
    ) -> Float[Array, "M _"]:
        """Return each row times its expert's matrix, or that transposed; places without a row say nothing."""
        match self.method:
            case "hopper":
                return hopper_product(x, kernel, sizes, transposed=transposed)
            case "blocks":
                return block_product(x, kernel, sizes, self.block, transposed=transposed)
        return jax.lax.ragged_dot(x, kernel.swapaxes(1, 2) if transposed else kernel, sizes)

    def kernel_gradient(
        self, x: Float[Array, "M D"], gradient: Float[Array, "M F"], sizes: Int[Array, " E"]
    ) -> Float[Array, "E D F"]:
        """Return for each expert its rows of x, transposed, times those of `gradient`, which is 0 in other places."""
        match self.method:
            case "hopper":
                return hopper_kernel_gradient(x, gradient, sizes)
            case "blocks":
                return block_kernel_gradient(x, gradient, sizes, self.block)
        by_expert = jax.lax.RaggedDotDimensionNumbers(
            dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
        )
        return jax.lax.ragged_dot_general(x, gradient, sizes, by_expert)
