"""The shapes in the signatures of Mamba-2 are the shapes that its functions take and return."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

from hetjax.models.kernels.causal_conv import causal_conv, ids_from, starts_from
from hetjax.models.kernels.mamba_scan import chunk_outputs, chunk_states, split_chunks, ssd_scan, ssd_step
from hetjax.models.parts.mamba import Mamba2
from hetjax.models.parts.mamba.gated_norm import _gated_norm
from tests.harness.models.mamba_layer import WIDTH, build


def checked(function, *args, **kwargs):
    """The function's shapes, with its annotations enforced; those behind `jax.checkpoint` are on what it wraps."""
    function = getattr(function, "__wrapped__", function)
    return jax.eval_shape(lambda: jaxtyped(function, typechecker=beartype)(*args, **kwargs))


def ones(*shape):
    return jnp.ones(shape, jnp.float32)


ROWS = ones(2, 7, 4, 3), ones(2, 7, 4), ones(4), ones(2, 7, 2, 5), ones(2, 7, 2, 5), ones(4)


def test_shapes_that_the_signatures_state_are_taken():
    starts, segments = jnp.zeros((2, 7), bool), jnp.zeros((2, 7), jnp.int32)
    checked(ssd_scan, *ROWS, chunk=4, starts=starts, state=ones(2, 4, 3, 5))
    checked(ssd_step, ones(2, 4, 3), ones(2, 4), ones(4), ones(2, 2, 5), ones(2, 2, 5), ones(4), ones(2, 4, 3, 5))
    chunks = split_chunks(*ROWS[:5], starts, 4)
    checked(split_chunks, *ROWS[:5], starts, 4)
    checked(chunk_states, chunks)
    checked(chunk_outputs, chunks, *chunk_states(chunks), ones(2, 2, 2, 3, 5), ones(4))
    ids = ids_from(segments, 4)
    checked(ids_from, segments, 4)
    checked(starts_from, ids, 4)
    checked(causal_conv, ones(2, 7, 4, 3), ones(2, 3, 4, 3), ones(4, 4, 3), ones(4, 3), ids)
    checked(_gated_norm, ones(2, 7, 4, 3), ones(2, 7, 4, 3), ones(4, 3), 2, 1e-5)
    checked(Mamba2.__call__, build(dtype=np.float32), ones(2, 7, WIDTH), segments=segments)


def test_steps_of_other_heads_are_refused():
    with pytest.raises(TypeCheckError):
        checked(ssd_scan, ROWS[0], ones(2, 7, 5), *ROWS[2:], chunk=4)
