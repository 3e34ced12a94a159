"""Steps whose numbers are not finite: skipped and counted, and too many in a row end the run with nothing lost."""

import jax.numpy as jnp
import pytest

from hetjax.cli import train_main
from hetjax.errors import DivergenceError
from hetjax.training.bad_steps import BadSteps
from hetjax.training.metrics import read_metrics
from tests.harness.digits_run import CONFIG, ONE_DEVICE, write_dataset
from tests.harness.paths import ROOT

GOOD, BAD = {"loss": 1.0, "grad_norm": 2.0}, {"loss": float("nan"), "grad_norm": float("inf")}
SUMS = {"vision": jnp.float32(1), "llm.0": jnp.float32("nan")}


def test_bad_steps_in_a_row_are_counted_up_to_the_limit():
    watch = BadSteps(2)
    for numbers in (GOOD, BAD, BAD, GOOD, BAD, BAD):
        found = watch.check(1, numbers, SUMS)
        assert (found is None) == (numbers is GOOD)
    assert watch.total == 4
    assert found == "the loss is nan, the gradient norm inf, and the gradients of llm.0 are not finite"
    with pytest.raises(DivergenceError, match=r"step 7: the loss is nan.*llm\.0 .*, as the 2 steps before"):
        watch.check(7, BAD, SUMS)


def test_a_number_that_is_not_finite_beside_a_finite_gradient_ends_the_run():
    with pytest.raises(DivergenceError, match="step 2: the loss is 1, the gradient norm 2, llm/accuracy nan"):
        BadSteps(3).check(2, {**GOOD, "llm/accuracy": float("nan")}, {})


def test_a_limit_of_zero_ends_at_the_first():
    with pytest.raises(DivergenceError, match="step 3: the loss is nan"):
        BadSteps(0).check(3, BAD, {})


def train(tmp_path, capsys, steps, rate):
    """The exit code of a run up to a step, what it printed, and the steps of its checkpoints."""
    data = write_dataset(tmp_path / "data", samples=8)
    given = {
        "run_dir": tmp_path / "run", "data.train": data, "data.eval": "null", "data.batch_size": 4,
        "steps": steps, "log_every": 1, "optimizer.learning_rate": rate, "optimizer.warmup_steps": 1,
        "checkpoint_every": 1, "profile_every": "null", "resume": "changed",
    }  # fmt: skip
    settings = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    try:
        train_main(["--config", CONFIG, *ONE_DEVICE, *settings])
    except SystemExit as error:
        code = error.code
    else:
        code = 0
    out, err = capsys.readouterr()
    found = (tmp_path / "run" / "checkpoints").glob("*")
    saved = sorted(int(path.name) for path in found if path.name.isdigit())
    return code, " ".join((out + err).split()), saved


@pytest.mark.slow
@pytest.mark.quick
def test_weights_that_a_step_made_absurd_are_not_saved_and_the_run_goes_on_from_before(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert (first := train(tmp_path, capsys, 3, 1e-3))[0] == 0, first
    code, printed, saved = train(tmp_path, capsys, 6, 1e38)
    assert code == 2 and saved[-1] == 3
    assert "step 4: the weights of vision, llm are no finite numbers, or too large to compute with" in printed
    assert "go on from the checkpoint of step 3 with --resume changed" in printed
    code, printed, saved = train(tmp_path, capsys, 6, 1e-3)
    assert code == 0 and saved[-1] == 6, printed
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == list(range(1, 7))
