import json

import pytest

from hetjax.cli import main
from hetjax.tools.bench.overlap import summary


def worker(pipelined, one_at_a_time, stage: str, forward: float, backward: float):
    return {
        "pipelined": pipelined,
        "one_at_a_time": one_at_a_time,
        "costs": {f"{stage} forward": forward, f"{stage} backward": backward},
    }


def test_a_step_takes_as_long_as_the_slower_process_and_equal_stages_give_the_perfect_ratio():
    found = [worker([1.0, 3.0, 2.0], [4.0] * 3, "vision", 1, 2), worker([2.0, 1.0, 2.5], [5.0] * 3, "llm", 1, 2)]
    numbers = summary(found, microbatches=4, schedule="1f1b")
    assert numbers["pipelined_seconds"] == 2.5
    assert numbers["one_at_a_time_seconds"] == 5.0
    assert numbers["ratio"] == 0.5
    assert numbers["ratio_of_a_perfect_pipeline"] == numbers["ratio_simulated_from_these_costs"] == 5 / 8


def test_unequal_stages_overlap_less():
    found = [worker([1.0], [1.0], "vision", 1, 2), worker([1.0], [1.0], "llm", 3, 6)]
    numbers = summary(found, microbatches=4, schedule="1f1b")
    assert numbers["ratio_simulated_from_these_costs"] == (4 * 9 + 1 + 2) / (4 * 12)


def test_less_than_one_microbatch_is_refused(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["bench", "overlap", "--microbatches", "0"])
    assert exit.value.code == 2
    assert "microbatches is 0; give 1 or more" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(400)
def test_two_processes_of_one_core_each_compute_at_the_same_time(capsys):
    main(["bench", "overlap", "--microbatches", "8", "--json"])
    numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert numbers["ratio"] <= 0.65, numbers
