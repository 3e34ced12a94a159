"""A small Mamba-2 layer with random weights of every kind."""

import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx

from hetjax.models.arrays import arrays_by_path
from hetjax.models.parts.mamba import Mamba2, MambaConfig
from tests.harness.models.arrays import with_arrays

WIDTH = 8
CONFIG = MambaConfig(heads=4, head_dim=3, groups=2, state=5, chunk=4)


def build(config: MambaConfig = CONFIG, dtype=np.float64) -> Mamba2:
    """Weights as large as 1, and A and time steps by which states last for some tokens and not for others."""
    layer, drawn = _drawn(config)
    return with_arrays(layer, {path: jnp.asarray(array, dtype) for path, array in drawn.items()})


@functools.cache
def _drawn(config: MambaConfig):
    rng = np.random.default_rng(3)
    with nnx.use_eager_sharding(False):
        layer = nnx.eval_shape(lambda: Mamba2(WIDTH, config, rngs=nnx.Rngs(0)))
    return layer, {path: rng.normal(size=shape.shape) * 0.7 for path, shape in arrays_by_path(layer).items()}


def weights_of(layer: Mamba2) -> dict[str, np.ndarray]:
    return {path: np.asarray(array, np.float64) for path, array in arrays_by_path(layer).items()}


def rows(samples: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(samples, length, WIDTH))


def error(got, want) -> float:
    got, want = np.asarray(got), np.asarray(want)
    return float(np.abs(got - want).max() / np.abs(want).max())


call = nnx.jit(lambda layer, x, **where: layer(x, **where))
