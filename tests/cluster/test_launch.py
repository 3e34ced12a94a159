"""hetjax launch: exit codes, signals, logs, and that nothing is left behind. The children are plain Python."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hetjax.cli import main
from tests.harness.paths import ROOT

LAUNCH = """
import pathlib, sys
from hetjax.cluster.launch import launch_processes
processes, grace, logs, restarts, *command = sys.argv[1:]
logs = pathlib.Path(logs) if logs else None
code = launch_processes(command, processes=int(processes), grace=float(grace), logs=logs, restarts=int(restarts))
assert "jax" not in sys.modules
sys.exit(code)
"""
SHOW = "import os, sys; i = os.environ['JAX_PROCESS_ID']; "


def buffered():
    """The environment without PYTHONUNBUFFERED: a line of process 0 would come in pieces, and those of others stand
    between them."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@contextlib.contextmanager
def launched(processes, command, *, grace=3.0, logs="", restarts=0):
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(processes), str(grace), str(logs), str(restarts), *command],
        cwd=ROOT,
        env=buffered(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield launcher
    finally:
        launcher.kill()
        launcher.wait()
        launcher.stdout.close()
        launcher.stderr.close()


def run(processes, code, **settings):
    """(exit code, stdout, stderr) of a group that runs some Python code."""
    with launched(processes, ["-c", SHOW + code], **settings) as launcher:
        out, err = launcher.communicate(timeout=30)
        return launcher.returncode, out, err


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def running(pid):
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def pids(folder, count):
    """The ids that processes wrote to pid-i, once all did."""
    wait_for(lambda: len(list(folder.glob("pid-*"))) == count)
    wait_for(lambda: all(file.read_text() for file in folder.glob("pid-*")))
    return [int((folder / f"pid-{i}").read_text()) for i in range(count)]


def test_each_process_gets_its_place_and_its_devices():
    names = "('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID', 'JAX_LOCAL_DEVICE_IDS')"
    code, out, err = run(3, f"sys.stdout.write(' '.join(os.environ[n] for n in {names}) + chr(10))")
    rows = sorted(line.split() for line in out.splitlines())
    assert code == 0 and err == ""
    assert len({row[0] for row in rows}) == 1 and rows[0][0].startswith("127.0.0.1:")
    assert sorted(row[1:] for row in rows) == [["3", "0", "0"], ["3", "1", "1"], ["3", "2", "2"]]


def test_errors_of_all_but_the_first_process_carry_their_number():
    code, out, err = run(2, "print('out', i); print('err', i, file=sys.stderr)")
    assert code == 0
    assert sorted(out.splitlines()) == ["out 0", "out 1"]
    assert sorted(err.splitlines()) == ["err 0", "process 1: err 1"]


def test_the_first_failure_ends_the_group_with_its_code():
    started = time.monotonic()
    code, _, err = run(3, "import time; time.sleep(100 if i != '1' else 0); sys.exit(3)", grace=0.5)
    assert code == 3
    assert "process 1 of 3 ended with exit code 3" in err
    assert time.monotonic() - started < 50


def test_a_process_that_ends_because_of_another_is_not_the_cause():
    code, _, err = run(2, "import time; time.sleep(0.5 * int(i)); sys.exit(75 if i == '0' else 9)")
    assert code == 9
    assert "process 1 of 2 ended with exit code 9" in err


def test_a_process_that_a_signal_ended_counts_as_a_shell_counts_it():
    code, _, err = run(2, "os.kill(os.getpid(), 9) if i == '1' else 0")
    assert code == 128 + 9
    assert "process 1 of 2 was ended by SIGKILL" in err


def test_a_process_that_ignores_the_request_to_end_is_killed(tmp_path):
    code = (
        "import signal, time; signal.signal(15, signal.SIG_IGN) if i == '0' else 0; "
        f"open(r'{tmp_path}/pid-' + i, 'w').write(str(os.getpid()))\n"
        f"while len(os.listdir(r'{tmp_path}')) < 2: time.sleep(0.01)\n"
        "sys.exit(4) if i == '1' else time.sleep(60)"
    )
    assert run(2, code, grace=0.3)[0] == 4
    assert not any(map(running, pids(tmp_path, 2)))


def test_logs_hold_the_output_of_each_and_the_first_shows_too(tmp_path):
    code, out, err = run(3, "print('out', i); print('err', i, file=sys.stderr); sys.exit(5 * (i > '1'))", logs=tmp_path)
    assert (code, out) == (5, "out 0\n")
    log = tmp_path / "process-2.log"
    assert err.splitlines() == ["err 0", f"process 2 of 3 ended with exit code 5; its output is in {log}"]
    for i in range(3):
        assert sorted((tmp_path / f"process-{i}.log").read_text().splitlines()) == [f"err {i}", f"out {i}"]


# Each process writes its id, and what it was sent.
LISTENING = """
import os, signal, sys, time
path = sys.argv[1] + "/pid-" + os.environ["JAX_PROCESS_ID"]
def stop(number, frame):
    sys.exit(130)
signal.signal(int(sys.argv[2]), stop)
open(path, "w").write(str(os.getpid()))
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_reaches_every_process(tmp_path, number):
    with launched(3, ["-c", LISTENING, str(tmp_path), str(int(number))]) as launcher:
        children = pids(tmp_path, 3)
        launcher.send_signal(number)
        assert launcher.wait(20) == 130
        assert not any(map(running, children))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no kernel ends the children of a killed process")
def test_a_killed_launcher_leaves_no_orphan(tmp_path):
    with launched(3, ["-c", LISTENING, str(tmp_path), "15"]) as launcher:
        children = pids(tmp_path, 3)
        launcher.kill()
        wait_for(lambda: not any(map(running, children)), seconds=5)


def test_helpers_of_a_process_end_with_it(tmp_path):
    code = (
        "import subprocess; helper = subprocess.Popen(['sleep', '60'], stderr=subprocess.DEVNULL); "
        f"open(r'{tmp_path}/pid-' + i, 'w').write(str(helper.pid))"
    )
    assert run(2, code)[0] == 0
    wait_for(lambda: not any(map(running, pids(tmp_path, 2))), seconds=5)


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["--processes", "2"], "nothing to launch"),
        (["--processes", "2", "--"], "nothing to launch"),
        (["--processes", "0", "--", "train.py"], "processes=0: must be at least 1"),
        (["--processes", "2", "--devices_per_process", "0", "--", "train.py"], "devices_per_process=0"),
        (["--processes", "2", "--port", "70000", "--", "train.py"], "port=70000"),
        (["--processes", "2", "--", "nowhere.py", "--help"], "nowhere.py: no such file"),
        (["--proceses", "2", "--", "train.py"], "did you mean 'processes'?"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(capsys, arguments, printed):
    with pytest.raises(SystemExit) as exit:
        main(["launch", *arguments])
    assert exit.value.code == 2
    assert printed in capsys.readouterr().err


def test_what_stands_behind_the_dashes_is_handed_on_verbatim(tmp_path):
    script = tmp_path / "show.py"
    script.write_text("import sys; print(sys.argv[1:])")
    launcher = [sys.executable, "-m", "hetjax", "launch", "--processes", "2", "--", str(script)]
    words = [*launcher, "--config", "a b", "--", "--help"]
    printed = subprocess.run(words, cwd=ROOT, env=buffered(), capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.splitlines() == ["['--config', 'a b', '--', '--help']"] * 2


def test_other_tools_take_nothing_behind_dashes(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "overhead", "--", "train.py"])
    assert "hetjax bench overhead takes nothing behind --" in capsys.readouterr().err


def test_one_process_is_a_plain_run_even_with_an_exit_code():
    assert run(1, "sys.exit(6)")[0] == 6


def test_the_environment_of_the_launcher_is_handed_on(monkeypatch):
    monkeypatch.setenv("HETJAX_TEST_WORD", "grüß")
    assert run(1, "print(os.environ['HETJAX_TEST_WORD'])")[1] == f"{os.environ['HETJAX_TEST_WORD']}\n"


COUNT = """
import pathlib, signal
starts = pathlib.Path({path!r})
starts.open("a").write(i)
count = starts.read_text().count(i)
"""


def test_all_are_started_again_after_a_failure_until_one_start_succeeds(tmp_path):
    code = COUNT.format(path=str(tmp_path / "starts")) + (
        "if i == '1' and count == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.exit(75 if i == '0' and count == 2 else 0)"
    )
    code = "exec(" + repr(code) + ")"
    done, _, err = run(2, code, restarts=5)
    assert done == 0
    assert sorted((tmp_path / "starts").read_text()) == ["0"] * 3 + ["1"] * 3
    assert "process 1 of 2 was ended by SIGKILL\nstarting all 2 again, 1 of 5 times" in err
    assert "process 0 of 2 ended with exit code 75\nstarting all 2 again, 2 of 5 times" in err


@pytest.mark.parametrize(("code", "starts"), [(2, 1), (130, 1), (3, 3)])
def test_a_mistake_or_a_stop_is_final_and_restarts_come_to_an_end(tmp_path, code, starts):
    script = "exec(" + repr(COUNT.format(path=str(tmp_path / "starts")) + f"sys.exit({code})") + ")"
    assert run(1, script, restarts=2)[0] == code
    assert (tmp_path / "starts").read_text() == "0" * starts
