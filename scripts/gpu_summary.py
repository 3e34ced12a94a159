"""Tables in Markdown of what scripts/gpu_check.sh measured, which calls it: FOLDER NAME=STATUS=SECONDS..."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

GIB = 2**30
RUNS = ("omni", "vlm")


def main(folder: Path, parts: Sequence[str]) -> None:
    """Print the parts with what became of them, then a table of steps, one of components, one of memory."""
    print(table(("part", "result", "seconds"), [_part(each) for each in parts]))
    steps = {run: _read(folder / f"{run}.step.json") for run in RUNS}
    reference = _read(folder / "vlm.torch.json")
    columns = [("hetjax", each) for each in steps.values() if each] + ([("PyTorch", reference)] if reference else [])
    if columns:
        print(table(("a step", *(f"{system}: {each['name']}" for system, each in columns)), list(_steps(columns))))
    models = [each for run in RUNS if (each := _read(folder / f"{run}.model.json"))]
    if models:
        heading = ("component", "parameters", "tokens", "time", "TFLOP/s", "of bfloat16 peak")
        print(table(heading, [row for each in models for row in _components(each)]))
    memory = [(run, steps[run], _read(folder / f"{run}.target.json")) for run in RUNS]
    rows = [_memory(run, step, report) for run, step, report in memory if report]
    if rows:
        heading = ("memory of the device, GiB", "as compiled", "reserve", "held at most", "held / compiled")
        print(table(heading, rows))


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, and an empty line."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _read(path: Path) -> dict | None:
    """Return what a part wrote: the JSON of its whole output, or of the last line."""
    text = path.read_text().strip() if path.exists() else ""
    for candidate in (text, text.rpartition("\n")[2]):
        try:
            return json.loads(candidate)
        except ValueError:
            continue
    return None


def _part(result: str) -> tuple[str, str, str]:
    name, status, seconds = result.rsplit("=", 2)
    words = {"0": "passed", "124": "took too long", "skipped": "skipped"}
    return name, words.get(status, f"failed ({status})"), seconds


def _steps(columns: Sequence[tuple[str, dict]]) -> Iterator[tuple[str, ...]]:
    figures = [each for _, each in columns]
    yield "device", *(each["device_kind"] for each in figures)
    yield "median of steps", *(f"{1000 * each['seconds']:.1f} ms" for each in figures)
    yield "fastest", *(f"{1000 * each['seconds_min']:.1f} ms" for each in figures)
    yield "tokens/s", *(f"{each['tokens_per_second']:,.0f}" for each in figures)
    yield "TFLOP/s of the model", *(_number(each.get("tflops_per_device"), ".1f") for each in figures)
    yield "of bfloat16 peak", *(_number(each.get("share_of_peak"), ".1%") for each in figures)
    yield "memory held at most, GiB", *(_number(_held(each), ".1f", GIB) for each in figures)


def _held(figures: dict) -> int | None:
    """Return the bytes in use at most: of hetjax's fullest device, or of PyTorch's allocator."""
    by_device = figures.get("peak_bytes_per_device")
    return max(by_device.values()) if by_device else figures.get("peak_bytes")


def _components(figures: dict) -> Iterator[tuple[str, ...]]:
    for name, each in figures["components"].items():
        yield (
            f"{Path(figures['model']).stem}: {name}",
            f"{each['parameters']:,}",
            f"{each['tokens']:,}",
            f"{1000 * each['seconds']:.1f} ms",
            f"{each['tflops']:.1f}",
            _number(each["share_of_peak"], ".1%"),
        )


def _memory(run: str, step: dict | None, report: dict) -> tuple[str, ...]:
    """The report's peak without the reserve, which stands for what no compiler tells, beside what was in use."""
    fullest = max(report["meshes"].values(), key=lambda mesh: mesh["peak_bytes"])
    compiled = sum(fullest[f"{part}_bytes"] for part in ("persistent", "residual", "temporary"))
    held = _held(step) if step else None
    reserve = fullest["peak_bytes"] - compiled
    return (
        run,
        f"{compiled / GIB:.1f}",
        f"{reserve / GIB:.1f}",
        _number(held, ".1f", GIB),
        _number(held, ".2f", compiled),
    )


def _number(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if value is None else format(value / unit, form)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
