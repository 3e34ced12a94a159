import jax
import pytest


@pytest.fixture
def dtype(request):
    """The dtype that a test asks for by `indirect`, with 64 bits switched on for as long as they are needed."""
    jax.config.update("jax_enable_x64", request.param == "float64")
    yield request.param
    jax.config.update("jax_enable_x64", False)
