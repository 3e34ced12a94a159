import jax
import numpy as np

from hetjax.models.kernels.expert_check import expert_problem


def test_rounding_to_bfloat16_is_within_the_tolerance_and_an_expert_mixed_up_is_not():
    rounded, exact, arguments, tolerance = expert_problem("blocks")
    mixed_up = (*arguments[:-1], np.where(arguments[-1] == 4, 3, arguments[-1]))
    want = jax.jit(exact)(*arguments)

    def error(got):
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
        return max(np.abs(np.float32(a) - b).max() / np.abs(b).max() for a, b in pairs)

    run = jax.jit(rounded)
    assert error(run(*arguments)) < tolerance < error(run(*mixed_up))
