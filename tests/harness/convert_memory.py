"""Run `hetjax convert` and print the largest memory it took, beyond what it had before its work began, in bytes.

python -m tests.harness.convert_memory FROM TO [OPTION ...]
"""

import re
import sys
from pathlib import Path

from hetjax.checkpoint.huggingface import export_to_huggingface  # noqa: F401
from hetjax.checkpoint.saved_weights import SavedWeights  # noqa: F401, what a conversion imports
from hetjax.commands import run_tool


def memory(what: str) -> int:
    """Resident memory of this process, mapped files included: VmRSS now, or VmHWM at most so far."""
    return 1024 * int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def main() -> None:
    warm, source, target, *options = sys.argv[1:]
    # The first conversion, of a small folder, makes what libraries make once.
    run_tool(["convert", "--from", warm, "--to", f"{target}-warm"])
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    before = memory("VmRSS")
    run_tool(["convert", "--from", source, "--to", target, *options])
    print(memory("VmHWM") - before)


if __name__ == "__main__":
    main()
