"""Our modules with the numbers of a checkpoint."""

import jax
import numpy as np
from flax import nnx

from hetjax.models.arrays import arrays_by_path
from tests.harness.huggingface.whole_models import read_arrays
from tests.harness.models.arrays import with_arrays


def with_tensors(build, entries, tensors, dtype=None):
    """The module that `build` makes, with all its arrays from `tensors`; floats in `dtype` if that is given."""
    module = nnx.eval_shape(build)
    arrays = read_arrays(entries, tensors, arrays_by_path(module))
    if dtype is not None:
        arrays = {
            path: array.astype(dtype) if np.issubdtype(array.dtype, np.floating) else array
            for path, array in arrays.items()
        }
    return with_arrays(module, jax.tree.map(jax.numpy.asarray, arrays))
