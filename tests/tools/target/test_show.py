"""The report in the terminal and as a picture, from numbers that are made up."""

import dataclasses
import io

from PIL import Image
from rich.console import Console

from hetjax.tools.target.picture import draw_memory
from hetjax.tools.target.show import tables
from tests.harness.fit_reports import FACTS, need, report


def printed(found) -> str:
    console = Console(file=io.StringIO(), width=200)
    for item in tables(found):
        console.print(item, highlight=False, markup=False)
    return console.file.getvalue()


def test_the_tables_show_parts_sum_and_peak_of_each_group_of_devices_once():
    colocated = [
        need("residuals", 20, name=name, stages=("vision", "llm"), devices=(0, 1, 2)) for name in ("vision", "llm")
    ]
    text = printed(report(*colocated, need("residuals", 5, name="audio", stages=("audio",), devices=(3,))))
    assert text.count("vision, llm (0-2)") == 1 and text.index("vision, llm (0-2)") < text.index("audio (3)")
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert "20.0 GiB" in rows["residuals"] and "5.0 GiB" in rows["residuals"]
    assert "33.5 GiB" in rows["sum"] and "74.5 GiB" in rows["the device has"] and "B0 of llm" in rows["most at"]


def test_the_tables_show_the_memory_of_the_host_where_any_is_used():
    mesh = need("residuals", 20)
    moments = tuple(dataclasses.replace(moment, host=3 << 30) for moment in mesh.group.moments)
    offloaded = dataclasses.replace(mesh, group=dataclasses.replace(mesh.group, moments=moments))
    (row,) = [line for line in printed(report(offloaded)).splitlines() if "in the host's memory, at most" in line]
    assert "3.0 GiB" in row
    assert "host's memory" not in printed(report(mesh))


def test_programs_that_are_alike_have_one_row_with_their_products():
    facts = [dataclasses.replace(FACTS, name=f"llm.{stage} backward") for stage in range(3)]
    text = printed(report(need("residuals", 5), programs=facts))
    (row,) = [line for line in text.splitlines() if "llm.0 backward and 2 alike" in line and "FLOP" in line]
    assert "20 FLOP" in row and "10 FLOP" in row and "2.00" in row
    assert "bf16[1,16,16384,16384]" in text and "layers/attention" in text
    assert any("all-gather" in line and "tensor" in line and "yes" in line for line in text.splitlines())


def test_kernels_that_cannot_be_counted_are_told():
    facts = dataclasses.replace(FACTS, uncounted=3)
    assert "2.00 and unknown kernels" in printed(report(need("residuals", 5), programs=[facts]))


def test_the_picture_has_a_panel_for_each_group_of_devices(tmp_path):
    sizes = []
    for count in (1, 3):
        meshes = [need("residuals", 5, name=f"llm.{stage}", stages=(f"llm.{stage}",)) for stage in range(count)]
        path = tmp_path / f"{count}.png"
        draw_memory(meshes, path, title="a run on h100x8")
        sizes.append(Image.open(path).height)
    assert sizes[1] > 2 * sizes[0]
