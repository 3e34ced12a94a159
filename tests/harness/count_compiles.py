"""Count the programs that are lowered for a compiler, of whatever part of a program asks for them."""

import contextlib
from collections.abc import Iterator

import jax

LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"


@contextlib.contextmanager
def count_compiles() -> Iterator[list[str]]:
    """Inside the block the list grows by one for every program that JAX lowers."""
    found, active = [], True

    def listen(event: str, duration: float, **_: object) -> None:
        if active and event == LOWERED:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        active = False  # JAX has no public way to take a listener back
