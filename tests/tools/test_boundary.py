import json
import os
import subprocess
import sys

import pytest
from matplotlib.figure import Figure
from PIL import Image

from hetjax.cli import main
from hetjax.commands import run_tool

EXAMPLE = [
    "boundary", "--shape", "32,256,1024", "--dtype", "bfloat16",
    "--from", "data=4,tensor=2@0-7:batch", "--to", "data=2,context=2,tensor=2@8-15:batch,seq",
]  # fmt: skip
BYTES = 32 * 256 * 1024 * 2


def numbers(*arguments: str) -> dict:
    return run_tool(["boundary", *arguments])[0].numbers


@pytest.fixture(scope="module")
def without_devices():
    """The example in a process whose JAX cannot start a backend."""
    environment = {**os.environ, "JAX_PLATFORMS": "no_such_platform"}
    return subprocess.run(
        [sys.executable, "-m", "hetjax", *EXAMPLE, "--json"], env=environment, capture_output=True, text=True
    )


def test_the_example_needs_no_devices(without_devices):
    assert without_devices.returncode == 0, without_devices.stderr
    found = json.loads(without_devices.stdout.splitlines()[-1])
    assert found["bytes_moved"] == found["lower_bound"] == BYTES
    assert found["bytes_per_pair_max"] == BYTES // 8
    assert found["device_pairs"] == 8


def test_the_process_without_devices_would_have_noticed():
    environment = {**os.environ, "JAX_PLATFORMS": "no_such_platform"}
    done = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env=environment, capture_output=True)
    assert done.returncode != 0


def test_hops_list_bytes_device_pairs_and_the_busiest(without_devices):
    found = json.loads(without_devices.stdout.splitlines()[-1])
    assert [hop["name"] for hop in found["hops"]] == ["slice", "cross", "gather"]
    slice_, cross, gather = found["hops"]
    assert (slice_["bytes"], slice_["device_pairs"], slice_["busiest"]) == (0, 0, None)
    assert (cross["where"], cross["bytes"], cross["device_pairs"]) == ("source to destination", BYTES, 8)
    assert cross["busiest"]["bytes"] == BYTES // 8
    assert cross["busiest"]["from"] < 8 <= cross["busiest"]["to"]
    assert sum(nbytes for *_, nbytes in cross["bytes_per_pair"]) == BYTES
    # Each pair of tensor neighbours exchanges its halves of a quarter of the tensor.
    assert (gather["where"], gather["bytes"]) == ("destination", 4 * 2 * BYTES // 8)


def test_both_plans_are_priced_on_the_hardware_asked_for(without_devices):
    """Eight devices on each host, 50 GB/s each: a device of ours sends an eighth, a leader a quarter."""
    found = json.loads(without_devices.stdout.splitlines()[-1])
    assert (found["hardware"], found["devices_per_host"]) == ("H100", 8)
    ours = 10e-6 + BYTES / 8 / 50e9 + 3e-6 + BYTES / 8 / 450e9
    leader = 2 * 10e-6 + BYTES / 4 / 50e9 + 3e-6 + BYTES / 4 / 450e9
    assert found["predicted_seconds"] == {
        "plan": pytest.approx(ours),
        "leader_and_broadcast": pytest.approx(leader),
    }
    one_host = numbers(*EXAMPLE[1:], "--hardware", "b200", "--devices_per_host", "16")
    assert one_host["predicted_seconds"]["plan"] == pytest.approx(2 * (3e-6 + BYTES / 8 / 900e9))


def test_the_table_says_the_same(capsys):
    main(EXAMPLE)
    shown = capsys.readouterr().out
    for words in ("slice", "cross", "gather", "0→8", "16,777,216", "lower_bound", "leader and broadcast", "59.6 µs"):
        assert words in shown


def test_another_device_order_is_proposed_where_it_moves_less(capsys):
    arguments = ("--shape", "8,4", "--dtype", "float32", "--from", "data=4@0-3:batch", "--to", "data=4@1,0,3,2:batch")
    found = numbers(*arguments)
    assert found["bytes_moved"] == 8 * 4 * 4
    assert found["better_device_order"] == {"devices": "0-3", "bytes_moved": 0}
    main(["boundary", *arguments])
    assert 'devices: "0-3"' in capsys.readouterr().out


def test_the_best_order_is_proposed_to_no_one():
    assert numbers("--shape", "8", "--from", "data=2@0-1:batch", "--to", "data=2@0-1:batch")["hops"] == []
    arguments = ("--shape", "8,8", "--from", "data=2@0-1:batch", "--to", "context=2@0-1:,seq")
    assert numbers(*arguments)["better_device_order"] is None
    assert numbers(*EXAMPLE[1:])["better_device_order"] is None


def test_a_scalar_crosses_too():
    found = numbers("--shape", "", "--dtype", "float32", "--from", "data=2@0-1", "--to", "data=3@2-4")
    assert (found["bytes_moved"], [hop["name"] for hop in found["hops"]]) == (4, ["cross", "broadcast"])


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("data=4,tensor=2@0-7:batch", "data=2,context=2,tensor=2@8-15:batch,seq"),
        ("data=8@0-7:batch", "context=8@0-7:,seq"),
        ("data=4@0-3:batch", "data=4@4,5,2,3:batch"),
        ("data=2@0-1:batch", "data=2@0-1:batch"),
        ("data=64@0-63:batch", "data=8,tensor=8@64-127:batch"),
    ],
)
def test_any_plan_can_be_drawn(source, destination, tmp_path):
    path = tmp_path / "new" / "plan.png"
    numbers("--shape", "64,64,8", "--from", source, "--to", destination, "--out", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--from": "data=4"}, "--from: 'data=4' names no devices; write degrees@devices:dims"),
        ({"--to": "data=4@8-15:batch"}, "--to: layout covers data = 4 = 4 devices, but devices='8-15' are 8"),
        ({"--shape": "30,256,1024"}, "dim 'batch' of size 30 is not divisible by data=4 (30 % 4 = 2)"),
        ({"--shape": "32,x"}, "--shape '32,x' is no shape; write the sizes of its dims"),
        ({"--dtype": "float33"}, "--dtype 'float33' is unknown; write e.g. bfloat16"),
        ({"--hardware": "H1000"}, "--hardware 'H1000' is unknown; there are figures of B200, H200, H100"),
        ({"--devices_per_host": "0"}, "--devices_per_host is 0; give 1 or more"),
        ({"--out": "plan.txt"}, "give it one of the endings .png, .svg, .pdf"),
    ],
)
def test_what_makes_no_sense_exits_with_2_and_says_what_and_how_to_mend_it(changes, message, capsys):
    options = dict(zip(EXAMPLE[1::2], EXAMPLE[2::2], strict=True)) | changes
    with pytest.raises(SystemExit) as stopped:
        main(["boundary", *(word for option in options.items() for word in option)])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_help_names_the_sides_as_they_are_written(capsys):
    with pytest.raises(SystemExit):
        main(["boundary", "--help"])
    shown = capsys.readouterr().out
    assert "--from FROM" in shown
    assert "The sharding it comes from" in shown
    assert "from_" not in shown


@pytest.mark.parametrize("devices", [8, 256])
def test_the_title_of_a_picture_is_never_cut(devices, tmp_path, monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args: (figures.append(self), save(self, *args)))
    half = devices // 2
    source, destination = f"data={half}@0-{half - 1}:batch", f"data={half // 2},tensor=2@{half}-{devices - 1}:batch"
    for extra in ("", ",seq", ",seq,experts"):
        path = tmp_path / "plan.png"
        numbers("--shape", "65536,4096,1024", "--from", source, "--to", destination + extra, "--out", str(path))
        texts = figures[-1].axes[0].texts
        (title,) = [text for text in texts if text.get_text().startswith("bfloat16")]
        width, height = Image.open(path).size
        box = title.get_window_extent(figures[-1].canvas.get_renderer())
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height
        others = [text.get_window_extent() for text in texts if text is not title]
        assert not any(box.overlaps(other) for other in others)
