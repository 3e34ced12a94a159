import json

import pytest

from hetjax.cli import main
from hetjax.errors import ConfigError, ScheduleError
from hetjax.schedule import Costs, interleaved_1f1b, simulate
from hetjax.tools.bench.schedules import CLOSED_FORMS, peak_live, pipeline, schedules
from hetjax.tools.given_costs import KindCosts


@pytest.fixture(scope="module")
def found():
    return schedules(stages=[2, 4], microbatches=[2, 4, 8], chunks=2).numbers


def test_simulated_idle_shares_are_the_closed_forms(found):
    assert [(case["stages"], case["microbatches"]) for case in found["alone"]] == [
        *((2, 2), (2, 4), (2, 8), (4, 2), (4, 4), (4, 8)),
    ]
    for case in found["alone"]:
        assert set(case["schedules"]) == set(CLOSED_FORMS)
        for name, row in case["schedules"].items():
            assert row["idle_share"] == pytest.approx(row["closed_form"]), (case["stages"], case["microbatches"], name)


def test_step_times_follow_from_idle_shares_where_the_work_is_the_same(found):
    for cases in (found["alone"], found["with_encoder"]):
        for case in cases:
            plain = 1 - case["schedules"]["1f1b"]["idle_share"]
            for row in case["schedules"].values():
                assert row["step_time"] == pytest.approx(plain / (1 - row["idle_share"]))


def test_an_encoder_on_all_devices_is_best_off_in_the_bubbles(found):
    for case in found["with_encoder"]:
        idle = {name: row["idle_share"] for name, row in case["schedules"].items()}
        assert idle["bubble_fill"] < 0.95 * min(idle["1f1b"], idle["colocated"])


def test_an_encoder_that_takes_all_microbatches_at_once_is_colocated_in_every_schedule():
    """Its forward, the language model's pipeline, its backward: nothing else is left to choose."""
    (case,) = schedules(stages=[4], microbatches=[8], window=8).numbers["with_encoder"]
    rows = case["schedules"].values()
    assert len({row["makespan"] for row in rows}) == 1
    assert {row["peak_live_microbatches"] for row in rows} == {8}
    with pytest.raises(ScheduleError, match="microbatches=8: stage 'vision' takes 3 of them at once"):
        schedules(stages=[4], microbatches=[8], window=3)


def test_a_mesh_counts_the_microbatches_of_all_its_chunks():
    schedule = interleaved_1f1b(pipeline(4, chunks=2), 8)
    assert peak_live(schedule) == 2 * 3 + 4 + 1  # the warm-up of the first mesh
    row = schedules(stages=[4], microbatches=[8], chunks=2).numbers["alone"][0]["schedules"]
    assert row["interleaved_1f1b"]["peak_live_microbatches"] == 11 / 2
    assert row["gpipe"]["peak_live_microbatches"] == 8
    assert row["zero_bubble"]["peak_live_microbatches"] == row["1f1b"]["peak_live_microbatches"] == 4


def test_other_costs_leave_the_forms_that_do_not_hold_empty():
    costs = KindCosts(backward=3, backward_input=2)
    row = schedules(stages=[3], microbatches=[6], costs=costs).numbers["alone"][0]["schedules"]
    assert row["zero_bubble"]["closed_form"] is None
    assert row["1f1b"]["closed_form"] == row["1f1b"]["idle_share"] == pytest.approx(2 / 8)
    slow = schedules(stages=[3], microbatches=[6], costs=KindCosts(transfer=0.5)).numbers["alone"][0]["schedules"]
    assert {one["closed_form"] for one in slow.values()} == {None}
    assert slow["1f1b"]["idle_share"] > 2 / 8


def test_chunks_take_a_share_of_the_time_but_hand_over_as_much():
    row = schedules(stages=[2], microbatches=[4], costs=KindCosts(transfer=0.5)).numbers["alone"][0]["schedules"]
    short = Costs(forward=0.5, backward=1, transfer=0.5, update=0)
    expected = simulate(interleaved_1f1b(pipeline(2, chunks=2), 4), short).makespan
    assert row["interleaved_1f1b"]["makespan"] == expected


def test_the_command_prints_tables_or_json(capsys):
    command = ["bench", "schedules", "--stages", "[2]", "--microbatches", "[4]", "--costs.backward", "4"]
    main(command)
    text = capsys.readouterr().out
    for word in ("interleaved_1f1b", "zero_bubble", "bubble_fill", "closed", "20.0%", "0.5 times"):
        assert word in text.replace("\n", " ")
    main([*command, "--json"])
    numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert numbers["alone"][0]["schedules"]["gpipe"]["makespan"] == (4 + 1) * (1 + 4)


@pytest.mark.parametrize("wrong", [{"stages": []}, {"stages": [0]}, {"microbatches": [0]}, {"chunks": 0}])
def test_numbers_below_one_are_refused(wrong):
    with pytest.raises(ConfigError, match="give numbers of 1 or more"):
        schedules(**wrong)


def test_costs_below_zero_are_refused():
    with pytest.raises(ConfigError, match="encoder is -1"):
        schedules(encoder=-1)
    with pytest.raises(ScheduleError, match="the cost of backward_weight is -1"):
        schedules(costs=KindCosts(backward_weight=-1))
