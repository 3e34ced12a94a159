"""Every test runs on eight CPU devices unless it starts processes of its own."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def float64():
    """Run a test with 64-bit types, and leave the rest of the suite at 32."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
