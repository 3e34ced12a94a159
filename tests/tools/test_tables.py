"""Every table of the tools keeps its numbers whole on a terminal of 80 columns."""

import io
import itertools
import re

import pytest
from rich.console import Console

from hetjax.tools import timeline
from hetjax.tools.bench import boundary as bench_boundary
from hetjax.tools.bench import layouts, overhead, overlap, schedules, step
from hetjax.tools.bench import model as bench_model
from hetjax.tools.boundary import boundary
from hetjax.tools.given_costs import KindCosts
from hetjax.tools.tables import NumberTable

GIB = 2**30


def printed(table, columns=80):
    console = Console(width=columns, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def _timeline():
    lengths = {"forward": 12.3456, "backward": None, "backward_input": 123.4, "backward_weight": 234.5, "update": 0.123}
    stage = {**lengths, "idle_share": 0.987, "peak_live_microbatches": 4096}
    numbers = {"label": "interleaved_1f1b", "microbatches": 4096, "makespan": 1234.5, "idle_share": 0.9}
    stages = {f"language_model.{index}": stage for index in range(9, 11)}
    return timeline._table({**numbers, "unit": "seconds", "stages": stages})


def _layouts():
    by_module = {"vision": 123.4 * GIB, "llm": 1001.2 * GIB, "boundaries": 1011.3 * GIB}
    seconds = {"vision": 12345.678}
    row = {"seconds": 98765.432, "seconds_by_module": seconds, "bytes": 1022.4 * GIB, "bytes_by_module": by_module}
    numbers = {"homogeneous": row, "colocated": row, "seconds_ratio": 12.34, "bytes_ratio": 56.78}
    return layouts._table({**numbers, "devices": 8, "device_kind": "NVIDIA H100 80GB HBM3", "steps": 5})


def _overhead():
    case = {"devices": 1024, "microbatches": 1024, "plain_seconds": 123456.7, "hetjax_seconds": 234567.8}
    return overhead._table({"cases": [{**case, "ratio": 123.456, "parameters": 10**12}], "device_kind": "cpu"})


def _bench_boundary():
    row = {"seconds": 1234.56789, "bytes_per_device_max": 123456 * 2**20}
    case = {"name": "shared, data to tensor, and back again", "hetjax": row, "device_put": row, "leader": row}
    shape = {"shape": [24, 64, 131072], "device_kind": "NVIDIA H100 80GB HBM3", "repeats": 20}
    return bench_boundary._table({**shape, "cases": [case]})


def _bench_model():
    figures = {
        "parameters": 31_577_937_344,
        "tokens": 1_048_576,
        "flops_per_token": 1.2345e10,
        "seconds": 1234.5678,
        "tokens_per_second": 1_234_567.0,
        "tflops": 1234.5,
        "share_of_peak": 0.987,
    }
    components = {"vision": figures, "audio": figures, "llm": figures}
    return bench_model._table(
        {"model": "m", "device_kind": "NVIDIA H100", "dtype": "bfloat16", "components": components}
    )


def _step():
    numbers = {"name": "run", "devices": 1024, "device_kind": "cpu", "steps": 10, "seconds": 12.3, "seconds_min": 12.1}
    speed = {
        "tokens_per_second": 123456789.0,
        "model_flops": 1.2345e21,
        "compiled_flops": 2.3456e21,
        "tflops_per_device": 432.1,
    }
    memory = {"share_of_peak": 0.4321, "peak_bytes_per_device": {"0": 77.7 * GIB}}
    return step._table({**numbers, **speed, **memory, "seconds_by_module": {"a_module_with_a_name" * 5: 12345.6}})


def _overlap():
    ratios = {"ratio": 0.567, "ratio_simulated_from_these_costs": 0.568, "ratio_of_a_perfect_pipeline": 0.569}
    numbers = {"schedule": "1f1b", "microbatches": 8, "pipelined_seconds": 123.4, "one_at_a_time_seconds": 234.5}
    return overlap._table({**numbers, **ratios, "costs": {"vision backward": 12.34567}})


# A table, and numbers that it must show.
TABLES = {
    "timeline": (_timeline, ["1.23e+04 ms", "1.23e+05 ms + 2.34e+05 ms", "98.7%", "4096"]),
    "bench layouts": (_layouts, ["98765432.0 ms", "12345678.0 ms", "1022.4 GiB", "1001.2 GiB", "1011.3 GiB", "12.34"]),
    "bench overhead": (_overhead, ["1024", "123456700.0 ms", "234567800.0 ms", "123.456"]),
    "bench boundary": (_bench_boundary, ["1234567.89", "123456.00"]),
    "bench model": (_bench_model, ["31,577,937,344", "1.234e+10", "1234567.8 ms", "1,234,567", "98.7%"]),
    "bench step": (
        _step,
        ["12300.0 ms", "123,456,789", "1.234e+21", "2.346e+21", "432.1", "43.2%", "77.7 GiB", "12345600.0 ms"],
    ),
    "bench overlap": (_overlap, ["123400.0 ms", "0.567", "0.568", "0.569", "12345.67 ms"]),
}


@pytest.mark.parametrize("name", TABLES)
def test_no_number_is_cut_at_80_columns(name):
    make, numbers = TABLES[name]
    text = printed(make())
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for number in (word for each in numbers for word in each.split()):
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", text), f"{number} is not in\n{text}"


@pytest.fixture(scope="module")
def large():
    """A boundary with many device pairs, and every schedule."""
    sides = {"from_": "data=64,fsdp=2@0-127:batch", "to": "data=8,context=2,tensor=8@128-255:batch,seq"}
    return (
        boundary(shape="65536,4096,1024", **sides),
        schedules.schedules(stages=[8], microbatches=[32], costs=KindCosts(forward=1234.5)),
    )


def test_the_tables_of_a_large_boundary_and_of_all_schedules_keep_their_numbers(large):
    for outcome, columns in itertools.product(large, (60, 80, 200)):
        for table in outcome.shown:
            if isinstance(table, NumberTable):
                text = printed(table, columns)
                places = range(len(table.texts), len(table.texts) + len(table.numbers))
                words = [word for row in table.rows if row for place in places for word in row[place].split()]
                assert words and all(word in text for word in words), text
                assert "…" not in text


def test_a_table_that_fits_has_its_headings_in_one_line():
    table = NumberTable(title="a title", texts=("name",), numbers=("peak live microbatches",), rows=[("one", "12,345")])
    assert "peak live microbatches" in printed(table, 80)
    narrow = printed(table, 24)
    assert "peak live microbatches" not in narrow and "12,345" in narrow
    units = NumberTable(texts=("name",), numbers=("time",) * 3, rows=[("one", *["123,456.7 ms"] * 3)])
    assert printed(units, 60).count("123,456.7 ms") == 3
    assert printed(units, 50).count("123,456.7 ") == 3 and "…" not in printed(units, 50)
