"""scripts/gpu_check.sh in its tiny form: all parts run without a GPU, and its tables say what they measured."""

import json
import os
import subprocess
import sys

import pytest

from tests.harness.compile_quickly import environment
from tests.harness.paths import ROOT


def gpu_check(out, *arguments: str) -> subprocess.CompletedProcess:
    """Run it with this python, or with that of a folder."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    variables = {**environment(quick=True), "PATH": path, "GPU_CHECK_SMALL": "1", "OUT": str(out)}
    command = [ROOT / "scripts" / "gpu_check.sh", *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=560)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.timeout(600)
def test_every_part_runs_and_the_tables_say_what_they_measured(tmp_path):
    done = gpu_check(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (tmp_path / "summary.md").read_text()
    assert done.stdout.endswith(summary)
    for part in ("kernels against plain operations", "step of omni", "step of vlm", "components of omni"):
        assert f"| {part} | passed |" in summary
    step = json.loads((tmp_path / "vlm.step.json").read_text())
    assert f"| {1000 * step['seconds']:.1f} ms |" in summary and "hetjax: bench_small_vlm" in summary
    components = json.loads((tmp_path / "omni.model.json").read_text())["components"]
    assert all(f"| omni: {name} | {each['parameters']:,} |" in summary for name, each in components.items())


def test_a_part_that_fails_or_lacks_something_leaves_the_others_running(tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # Steps fail, nothing is installed, and the rest passes without a word.
    python.write_text(f"""#!/bin/sh
case "$*" in
    *"bench step"*vlm*) exit 3 ;;
    *"bench step"*) echo '{json.dumps(STEP)}' ;;
    -c*) exit 1 ;;
    *gpu_summary.py*) exec {sys.executable} "$@" ;;
esac
""")
    python.chmod(0o755)
    done = gpu_check(tmp_path, str(tmp_path / "venv"))
    assert done.returncode == 1
    summary = (tmp_path / "summary.md").read_text()
    for part, result in {
        "kernels against plain operations": "passed",
        "step of omni": "passed",
        "step of vlm": "failed (3)",
        "components of vlm": "passed",
        "the step of vlm in PyTorch": "skipped",
        "memory as compiled": "skipped",
    }.items():
        assert f"| {part} | {result} |" in summary
    assert "| a step | hetjax: omni |" in summary and "| median of steps | 250.0 ms |" in summary
    assert "| memory held at most, GiB | 3.0 |" in summary


STEP = {
    "name": "omni",
    "device_kind": "NVIDIA H200",
    "seconds": 0.25,
    "seconds_min": 0.2,
    "tokens_per_second": 1000,
    "tflops_per_device": 400.0,
    "share_of_peak": 0.4,
    "peak_bytes_per_device": {"0": 3 * 2**30},
}
