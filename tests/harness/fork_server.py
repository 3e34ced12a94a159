"""The server that starts processes of tests: it has imported what most of them need, and each is a fork of it.

Importing JAX and hetjax takes 3 seconds, a fork some milliseconds. It is safe: imports start no thread and no backend
of JAX. Python keeps one such server a process, so that all that use one share these imports.
"""

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "hetjax.trainer",
        "hetjax.checkpoint",
        "hetjax.config.build",
        "tests.harness.known_states",
        "tests.harness.parity.comparison",
        "tests.harness.watched_processes",
    ]
)
