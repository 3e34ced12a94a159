"""The tool as tests call it."""

from pathlib import Path

import pytest

from hetjax.cli import main
from tests.harness.huggingface.folders import LLAMA, QWEN3_MOE

FORMS = {"llama": LLAMA, "qwen3 with experts": QWEN3_MOE}


def convert(source: Path, target: Path, *options: str) -> Path:
    main(["convert", "--from", str(source), "--to", str(target), *options])
    return target


def refused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as exit:
        main(["convert", *map(str, arguments)])
    assert exit.value.code == 2
    return " ".join(capsys.readouterr().err.split())
