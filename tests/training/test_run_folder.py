"""A run's folder has one owner, and a line of metrics that is damaged ends nothing."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from hetjax.errors import RunFolderError
from hetjax.training.metrics import MetricsLog, read_metrics
from hetjax.training.run_folder import LOCK_FILE, RunFolder, own_folder

OWNER = """
import pathlib, signal, sys
from hetjax.training.run_folder import own_folder
folder = own_folder(pathlib.Path(sys.argv[1]), is_main=True)
print("owns it", flush=True)
signal.pause()
"""


def test_a_second_run_is_refused_by_the_name_of_the_first_until_that_is_gone_however_it_ended(tmp_path):
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "owns it\n"
            refusal = rf"another run owns {tmp_path}: process {process.pid} on \S+; wait for its end, stop it, or give"
            with pytest.raises(RunFolderError, match=refusal):
                own_folder(tmp_path, is_main=True)
            own_folder(tmp_path, is_main=False).check()  # another process of the same job
        finally:
            process.send_signal(signal.SIGKILL)
        process.wait(10)
    with contextlib.closing(own_folder(tmp_path, is_main=True)) as folder:
        folder.check()
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_vanishes_ends_the_run_at_its_next_write(tmp_path, replaced):
    with contextlib.closing(own_folder(tmp_path / "run", is_main=True)) as folder:
        log = MetricsLog(folder, resume_step=0)
        log.write({"step": 1, "loss": 2.0})
        shutil.rmtree(tmp_path / "run")
        if replaced:
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / LOCK_FILE).write_text("")
        with pytest.raises(RunFolderError, match=r"run was deleted or replaced while it ran"):
            log.write({"step": 2, "loss": 1.0})
        log.close()


@pytest.mark.parametrize("damage", [b"\x00\xff", b"{}", b"[1]", b"[" * 60_000, b'{"step": "2"}', b'{"step": 2, "lo'])
def test_a_damaged_line_is_named_and_left_out_and_the_file_as_it_was_is_kept(tmp_path, damage):
    lines = [b'{"step": 1, "loss": 3.0}', damage, b'{"step": 3, "loss": 1.0}', b'{"step": 4, "lo']
    path = tmp_path / "metrics.jsonl"
    for name in ("metrics.jsonl.damaged", "metrics.jsonl.damaged.1"):
        path.write_bytes(b"\n".join(lines))
        log = MetricsLog(RunFolder(tmp_path), resume_step=3)
        log.close()
        assert log.damaged == [
            f"{path}:2: no metrics of a step; left out, the file as it was is kept as {path.parent}/{name}"
        ]
        assert (tmp_path / name).read_bytes() == b"\n".join(lines)
        assert [row["step"] for row in read_metrics(path)] == [1, 3]
