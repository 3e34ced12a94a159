import itertools
import math
import random

import pytest

from hetjax.schedule import Costs, Kind, Schedule, colocated, one_f_one_b, simulate
from hetjax.schedule.actions import sends
from hetjax.schedule.filling import Filling
from hetjax.schedule.gpipe import backwards, forwards

COSTS = Costs(transfer=0.125, of={("vision", Kind.FORWARD): 0.75, ("vision", Kind.BACKWARD): 1.25})


@pytest.fixture
def make_filling(make_shared):
    """The pipeline of two stages in its 1F1B order, and the encoder on both."""

    def make(microbatches: int, independent: bool = True) -> Filling:
        graph = make_shared(2, independent=independent)
        plain = one_f_one_b(graph, microbatches)
        vision = graph.stage("vision")
        return Filling(
            graph=graph,
            microbatches=microbatches,
            costs=COSTS,
            pipeline=[plain.on("llm.0")[:-1], plain.on("llm.1")[:-1]],
            encoders=[forwards(vision, microbatches), backwards(vision, microbatches)],
        )

    return make


def random_order(filling: Filling, seed: int) -> list[int]:
    """A legal order, one of many."""
    chance, order, done = random.Random(seed), [], set()
    left = [list(places) for places in filling.streams]
    while any(left):
        can = [
            s for s, places in enumerate(left) if places and {n for n, _ in filling.programs[places[0]].needs} <= done
        ]
        order.append(chance.choice(can))
        done.add(left[order[-1]].pop(0))
    return order


@pytest.mark.parametrize("independent", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_an_order_is_judged_as_its_schedule_is_simulated(make_filling, seed, independent):
    filling = make_filling(3, independent)
    order = random_order(filling, seed)
    programs = [action for action, _, _ in filling.timed(order)]
    actions = tuple(action for program in programs for action in (program, *sends(filling.graph, program, ())))
    timeline = simulate(Schedule(name="mine", graph=filling.graph, microbatches=3, actions=actions), COSTS)
    assert filling.judge(order)[0] == pytest.approx(max(s.end for s in timeline.spans if s.devices))
    for action, start, end in filling.timed(order):
        spans = [span for span in timeline.spans if span.action == action]
        assert (start, end) == (min(s.start for s in spans), max(s.end for s in spans))


def test_an_order_in_which_a_program_comes_before_its_need_is_never_through(make_filling):
    filling = make_filling(2)
    order = sorted(random_order(filling, 0))  # the pipeline first, without the encoder
    assert filling.judge(order) == (math.inf, math.inf)


def test_the_order_of_a_schedule_is_read_from_its_actions(make_filling):
    filling = make_filling(3)
    actions = colocated(filling.graph, 3).actions
    order = filling.order_of(actions)
    programs = [a for a in actions if a.kind not in (Kind.TRANSFER, Kind.UPDATE)]
    assert [action for action, _, _ in filling.timed(order)] == programs
    assert filling.order_of(tuple(reversed(actions))) is None


@pytest.mark.parametrize("seed", range(5))
def test_improving_keeps_every_stream_and_takes_less_time(make_filling, seed):
    filling = make_filling(4)
    order = random_order(filling, seed)
    better = filling.improve(order)
    assert sorted(better) == sorted(order)
    assert filling.judge(better) < filling.judge(order)
    moves = itertools.permutations(range(len(order)), 2)
    for place, target in moves:
        other = [*better[:place], *better[place + 1 :]]
        other.insert(target, better[place])
        if better[place] >= 2 and abs(place - target) in (1, 2, 4, 8):
            assert not filling.judge(other) < filling.judge(better)
