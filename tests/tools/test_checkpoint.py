"""hetjax checkpoint: lists what is there, and ends with code 2 where a file is not what was written."""

import json

import pytest

from hetjax.cli import main
from hetjax.meshes import Layout
from tests.harness.known_states import llm_on, save


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save(folder / "checkpoints", llm_on(Layout(devices="0")), step=4)
    return folder


def test_verify_and_inspect(run, capsys):
    main(["checkpoint", "verify", str(run), "--json"])
    [row] = json.loads(capsys.readouterr().out)["checkpoints"]
    files = [path for path in (run / "checkpoints" / "4").rglob("*") if path.is_file() and path.name != "checksums"]
    assert row == {
        "step": 4, "files": len(files), "bytes": sum(path.stat().st_size for path in files), "verdict": "whole",
    }  # fmt: skip
    main(["checkpoint", "inspect", str(run), "--json"])
    found = json.loads(capsys.readouterr().out)
    [embedding] = [each for each in found["arrays"] if (each["kind"], each["path"]) == ("params", "embedding")]
    assert (found["step"], embedding["shape"], embedding["bytes"]) == (4, [40, 24], 4 * 40 * 24)
    main(["checkpoint", "inspect", str(run)])
    assert "opt_state" in capsys.readouterr().out


def test_damage_and_what_is_not_there_end_with_2(run, capsys):
    metadata = run / "checkpoints" / "4" / "llm.weights" / "_METADATA"
    content = metadata.read_bytes()
    metadata.write_bytes(content.replace(b"params", b"parans", 1))
    try:
        with pytest.raises(SystemExit) as end:
            main(["checkpoint", "verify", str(run)])
    finally:
        metadata.write_bytes(content)
    assert end.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "1 of 1 checkpoints" in error and "llm.weights/_METADATA are not what was written" in error
    with pytest.raises(SystemExit) as end:
        main(["checkpoint", "inspect", str(run), "--step", "5"])
    assert end.value.code == 2
    assert "no checkpoint of step 5; it has 4" in " ".join(capsys.readouterr().err.split())
