"""Every test runs on eight CPU devices unless it starts processes of its own."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True)
def quick_compilation(request):
    """Compile fast rather than well: numbers are checked here, not speed. Slow tests compile as a user's run does,
    but for those marked quick."""
    quick = not {"slow", "optimized"}.intersection(request.keywords) or "quick" in request.keywords
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def float64():
    """Run a test with 64-bit types, and leave the rest of the suite at 32."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
