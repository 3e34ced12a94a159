"""Compiles all programs of a step at once, in parallel threads, under a progress bar."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


def compile_all(tasks: Mapping[str, Callable[[], object]], *, progress: bool, console: Console | None = None) -> None:
    """Run every task; XLA compiles outside Python's lock, so threads truly run in parallel.

    Shows a bar with `progress`, on `console` or else stdout. Raises what the first failing task raised.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("compiling"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[last]}"),
    )
    with (
        Progress(*columns, disable=not progress, console=console) as bar,
        concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool,
    ):
        shown = bar.add_task("compile", total=len(tasks), last="")
        futures = {pool.submit(task): name for name, task in tasks.items()}
        for future in concurrent.futures.as_completed(futures):
            future.result()
            bar.update(shown, advance=1, last=futures[future])
