"""Equal programs are compiled once in a process, whichever tests ask for them: many train the same small model.

What is shared is the executable itself, in memory. (JAX's persistent cache would write and read it; see
`tests.harness.compile_quickly` for why it is not used.) JAX has no public place for this: `compile_or_get_cached` is
where its own cache stands, and `cache_key` what that compares: the program, the options, the devices and XLA's flags.
"""

import collections
import threading

from jax._src import cache_key, compiler

KEPT = 256
"""Executables that are kept, the last ones used: of those that are asked for again nearly all are among so many."""


def compile_equal_programs_once() -> None:
    """In this process, from now on."""
    compile_anew = compiler.compile_or_get_cached
    kept: collections.OrderedDict[tuple, object] = collections.OrderedDict()
    lock = threading.Lock()

    def compile_or_share(backend, computation, devices, compile_options, host_callbacks, *rest, **further):
        def compiled():
            return compile_anew(backend, computation, devices, compile_options, host_callbacks, *rest, **further)

        if host_callbacks:
            return compiled()
        program = cache_key.get(computation, devices, compile_options, backend)
        key = (program, tuple(device.id for device in devices.flat))
        with lock:
            shared = kept.get(key)
        # Compiled outside of the lock, so that programs are compiled side by side.
        shared = compiled() if shared is None else shared
        with lock:
            kept[key] = shared
            kept.move_to_end(key)
            while len(kept) > KEPT:
                kept.popitem(last=False)
        return shared

    compiler.compile_or_get_cached = compile_or_share
