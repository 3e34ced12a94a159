"""How programs compile fast rather than well, for tests of numbers: most of their time is compilation."""

import os

import jaxlib.version

# Of the two makers of CPU kernels the older one takes half the time. jaxlib 0.10 has both, later ones the newer alone.
KERNELS = "--xla_cpu_use_fusion_emitters=false" if jaxlib.version.__version_info__[:2] == (0, 10) else ""


def make_kernels_quickly() -> None:
    """In this process and those it starts. Call before the first computation: XLA reads its flags once."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {KERNELS}".strip()


def environment(*, quick: bool) -> dict[str, str]:
    """That of a process of a test, which compiles quickly, or as a user's run does."""
    unwanted = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    # Unbuffered, so that a log shows how far its process was when it was killed.
    kept["PYTHONUNBUFFERED"] = "1"
    return kept | ({"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": KERNELS} if quick else {})
