"""Models are built as the trainer builds them: dim names are recorded, and no mesh is looked for."""

import jax
import pytest
from flax import nnx


@pytest.fixture(autouse=True)
def no_eager_sharding():
    with nnx.use_eager_sharding(False):
        yield


@pytest.fixture(autouse=True)
def quick_compilation():
    """These tests run each program once: optimizing it would take most of their time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
