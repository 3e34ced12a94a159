import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import hetjax.schedule
from hetjax.errors import ScheduleError
from hetjax.schedule import SCHEDULES, StageGraph, build_schedule, needs_costs
from tests.harness.paths import ROOT

NAMES = ("gpipe", "1f1b", "interleaved_1f1b", "zero_bubble", "colocated", "bubble_fill")


@pytest.mark.parametrize("name", NAMES)
def test_schedules_are_built_by_name(name):
    schedule = build_schedule(name, StageGraph.chain(("vision", "llm")), 2)
    assert schedule.name == name
    assert schedule.actions == SCHEDULES[name](("vision", "llm"), 2).actions


def test_an_unknown_schedule_is_answered_with_the_known_ones():
    with pytest.raises(ScheduleError, match=f"unknown schedule 'zigzag'; the known ones are {', '.join(NAMES)}"):
        build_schedule("zigzag", StageGraph.chain("ab"), 2)


def test_only_the_schedule_that_searches_needs_costs():
    assert [name for name in SCHEDULES if needs_costs(name)] == ["bubble_fill"]
    with pytest.raises(ScheduleError, match="unknown schedule 'zigzag'; the known ones are gpipe, 1f1b, "):
        needs_costs("zigzag")


def test_the_name_of_a_schedule_stands_once_in_the_code():
    """In its own file; lists, settings and messages take it from there. Docstrings may name it."""
    files = {*(ROOT / "hetjax").rglob("*.py")} - {ROOT / "hetjax/schedule/__init__.py"}
    constants = Counter(value for path in files for value in _strings(path) if value in SCHEDULES)
    # `hetjax bench layouts` calls a placement by the same word.
    assert constants == Counter({**dict.fromkeys(SCHEDULES, 1), "colocated": 3})


def _strings(path: Path) -> Iterator[str]:
    """Every whole string of a source file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("name", NAMES)
def test_no_schedule_takes_zero_microbatches(name):
    with pytest.raises(ScheduleError, match="microbatches=0"):
        build_schedule(name, StageGraph.chain("ab"), 0)


def test_schedules_need_neither_jax_nor_an_array():
    for path in Path(hetjax.schedule.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"jax", "flax", "numpy"}, f"{path.name} imports {names}"
