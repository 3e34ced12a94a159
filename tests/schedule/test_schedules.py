import ast
from pathlib import Path

import pytest

import hetjax.schedule
from hetjax.errors import ScheduleError
from hetjax.schedule import SCHEDULES, StageGraph, build_schedule

NAMES = ("gpipe", "1f1b", "interleaved_1f1b", "zero_bubble", "colocated", "bubble_fill")


@pytest.mark.parametrize("name", NAMES)
def test_schedules_are_built_by_name(name):
    schedule = build_schedule(name, StageGraph.chain(("vision", "llm")), 2)
    assert schedule.name == name
    assert schedule.actions == SCHEDULES[name](("vision", "llm"), 2).actions


def test_an_unknown_schedule_is_answered_with_the_known_ones():
    with pytest.raises(ScheduleError, match=f"unknown schedule 'zigzag'; the known ones are {', '.join(NAMES)}"):
        build_schedule("zigzag", StageGraph.chain("ab"), 2)


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
