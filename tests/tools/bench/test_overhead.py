import contextlib
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.cli import main
from hetjax.errors import ConfigError
from hetjax.tools.bench import overhead as bench_overhead
from hetjax.tools.bench.overhead import overhead

COMMAND = "bench overhead --devices [2] --microbatches [4] --steps 2 --warmup 1 --size tiny --json"


@pytest.fixture(scope="module")
def run():
    """One run of the command: the JSON on the last line of stdout, and the two steps that it timed."""
    timed = []

    class Recorded(bench_overhead._Case):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            timed.append(self)

    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(bench_overhead, "_Case", Recorded)
        main(COMMAND.split())
    (case,) = timed
    return json.loads(out.getvalue().splitlines()[-1]), case


@pytest.mark.slow
@pytest.mark.quick
def test_a_case_reports_both_times_and_their_ratio(run):
    (case,) = run[0]["cases"]
    keys = {"devices", "microbatches", "plain_seconds", "hetjax_seconds", "ratio", "steps", "parameters"}
    assert set(case) == keys
    assert (case["devices"], case["microbatches"], case["steps"]) == (2, 4, 2)
    assert case["ratio"] == case["hetjax_seconds"] / case["plain_seconds"] > 0


@pytest.mark.slow
@pytest.mark.quick
def test_the_plain_step_and_the_trainer_reach_the_same_weights(run):
    numbers, case = run
    ours, plain = case.trainer.weights(case.state), jax.device_get(case.plain_state[0])
    assert numbers["cases"][0]["parameters"] == sum(x.size for x in jax.tree.leaves(ours))
    for module, arrays in plain.items():
        for path, array in arrays.items():
            # Adam turns rounding in a vanishing gradient into part of a step of 1e-3.
            np.testing.assert_allclose(ours[module][path], array, atol=1e-4, err_msg=f"{module} {path}")


@pytest.mark.slow
@pytest.mark.quick
def test_the_plain_step_spreads_every_microbatch_over_all_devices(run):
    _, case = run
    tokens = case.plain._place(case.batch["llm"]["tokens"])
    assert tokens.sharding.shard_shape(tokens.shape) == (4, 4, 8)
    assert {shard.device for shard in tokens.addressable_shards} == set(jax.devices()[:2])


@pytest.mark.slow
@pytest.mark.quick
def test_steps_whose_losses_differ_are_not_timed(run, monkeypatch):
    _, case = run
    monkeypatch.setattr(case, "_run_plain", lambda: jnp.float32(1))
    monkeypatch.setattr(case, "_run_hetjax", lambda: jnp.float32(1 + 1e-4))
    with pytest.raises(AssertionError, match="losses of step 0"):
        case.time(1, 1, tick=lambda: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": [3]}, "a batch of 32 samples is not divisible by 3 devices"),
        ({"microbatches": [0]}, r"microbatches \[0\]; give numbers of 1 or more"),
        ({"devices": []}, r"devices is \[\]"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_cases_that_cannot_run_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        overhead(**{"size": "tiny", **options})
