"""How programs compile fast rather than well, for tests of numbers: most of their time is compilation.

JAX's persistent cache of compiled programs would save more, and is not used: a training step of the omni model that
jaxlib 0.10.2 reads from it on CPU corrupts the heap ("corrupted double-linked list", in three runs of three).
"""

import contextlib
import os
from collections.abc import Iterator

import jaxlib.version

# Of the two makers of CPU kernels the older one takes half the time. jaxlib 0.10 has both, later ones the newer alone.
# And a program in one part: parts are compiled side by side, but the cores are taken by other tests.
KERNELS = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if jaxlib.version.__version_info__[:2] == (0, 10)
    else ""
)


def make_kernels_quickly() -> None:
    """In this process and those it starts; and let devices wait for each other on a busy machine, where XLA ends a
    process after 40 s. Call before the first computation: XLA reads its flags once."""
    patience = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {KERNELS} {patience}".strip()


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """Compile quickly within a test that does not: random weights take most of its time else, and no test reads
    the programs that draw them."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def environment(*, quick: bool) -> dict[str, str]:
    """That of a process of a test, which compiles quickly, or as a user's run does."""
    unwanted = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    # Unbuffered, so that a log shows how far its process was when it was killed.
    kept["PYTHONUNBUFFERED"] = "1"
    return kept | ({"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": KERNELS} if quick else {})
