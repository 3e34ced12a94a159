"""Which exit code an error ends a command with."""

import errno
import os

import pytest

from hetjax.cli import user_errors
from hetjax.cluster.launch import FINAL_CODES
from hetjax.error_report import STORAGE_ERROR_CODE, USER_ERROR_CODE, exit_code_of, report_error
from hetjax.errors import CheckpointError, ConfigError


def os_error(code):
    return OSError(code, os.strerror(code), "runs/a/metrics.jsonl")


def caused(error, cause):
    try:
        raise error from cause
    except type(error) as raised:
        return raised


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET])
def test_storage_that_may_come_back_has_a_code_that_restarts_try_again(code, capsys):
    found = [
        os_error(code),
        caused(CheckpointError("cannot write step 3"), os_error(code)),
        caused(CheckpointError("cannot write step 3"), ValueError(f"ABORTED: Error writing [OS error {code}: E]")),
    ]
    assert [exit_code_of(error) for error in found] == [STORAGE_ERROR_CODE] * 3
    assert STORAGE_ERROR_CODE not in FINAL_CODES
    with pytest.raises(SystemExit) as ended, user_errors():
        raise os_error(code)
    assert ended.value.code == STORAGE_ERROR_CODE
    assert "run the same command again" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "error",
    [
        os_error(errno.ENOSPC),
        os_error(errno.EACCES),
        os_error(errno.ENOENT),
        ConfigError("steps is 0"),
        caused(CheckpointError("cannot write step 3"), os_error(errno.EROFS)),
    ],
    ids=str,
)
def test_what_a_restart_would_meet_again_is_final(error):
    assert exit_code_of(error) == USER_ERROR_CODE in FINAL_CODES


def test_names_of_files_do_not_steer_the_terminal(capsys):
    report_error(ConfigError("no file 'a\x1b[2J\x9b1m\u202eb'\nsecond line"))
    assert capsys.readouterr().err == "error: no file 'a\\x1b[2J\\x9b1m\\u202eb'\nsecond line\n"
