"""How programs compile fast rather than well, for tests of numbers: half the time of the suite is compilation."""

import os

import jaxlib.version

# The older of the two makers of CPU kernels takes half the time of the other; jaxlib 0.10 has both, later ones do not.
KERNELS = "--xla_cpu_use_fusion_emitters=false" if jaxlib.version.__version_info__[:2] == (0, 10) else ""


def make_kernels_quickly() -> None:
    """In this process and those it starts. Call before the first computation: XLA reads its flags once."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {KERNELS}".strip()
