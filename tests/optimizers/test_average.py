"""The running average of weights: what it is, on stages, in evaluation and in a checkpoint."""

import numpy as np
import optax
import pytest

from hetjax.checkpoint import Checkpoints
from hetjax.checkpoint.saved_weights import SavedWeights
from hetjax.errors import ConfigError
from hetjax.optimizers.average import with_average
from hetjax.state.averaged import averaged_state
from tests.harness.optimizers import PLACEMENTS, make_batch, make_trainer, train_on_one_device

FLOAT32 = {"param_dtype": "float32", "compute_dtype": "float32"}


@pytest.fixture(scope="module")
def trained():
    """A trainer over stages, its state after two steps, and the weights before and after each."""
    optimizer = optax.partition(
        {"fast": with_average(optax.sgd(0.5), 0.75)}, lambda params: dict.fromkeys(params, "fast")
    )
    trainer = make_trainer({"encoder": optax.sgd(0.1), "tower": optimizer}, PLACEMENTS["microbatches"], **FLOAT32)
    state = trainer.init()
    weights = [trainer.weights(state)["tower"]]
    for _ in range(2):
        state, _ = trainer.step(state, make_batch())
        weights.append(trainer.weights(state)["tower"])
    return trainer, state, weights


def save(folder, trainer, state) -> None:
    checkpoints = Checkpoints(folder, keep=1, trainer=trainer)
    checkpoints.save(state, {})
    checkpoints.close()


def average_of(weights, path):
    average = weights[0][path]
    for after in weights[1:]:
        average = 0.75 * average + 0.25 * after[path]
    return average


def test_the_average_follows_the_weights_and_stands_in_for_those_that_have_one(trained):
    trainer, state, weights = trained
    found = trainer.weights(averaged_state(state))
    for path in weights[0]:
        np.testing.assert_allclose(found["tower"][path], average_of(weights, path), atol=1e-6)
        assert not np.allclose(found["tower"][path], weights[-1][path], atol=1e-6)
    now = trainer.weights(state)["encoder"]
    assert all(np.array_equal(found["encoder"][path], now[path]) for path in now)


def test_a_checkpoint_gives_the_average_on_request(tmp_path):
    trainer = make_trainer(with_average(optax.sgd(0.5), 0.75), PLACEMENTS["one-device"], **FLOAT32)
    state, _ = trainer.step(trainer.init(), make_batch())
    save(tmp_path, trainer, state)
    expected = {False: trainer.weights(state), True: trainer.weights(averaged_state(state))}
    for average, weights in expected.items():
        saved = SavedWeights(tmp_path, average=average)
        box = tuple(slice(0, size) for size in weights["tower"]["layers/kernel"].shape)
        np.testing.assert_array_equal(saved.read("tower", "layers/kernel", box), weights["tower"]["layers/kernel"])


def test_a_checkpoint_without_an_average_refuses_the_request(tmp_path):
    trainer = make_trainer(optax.sgd(0.5), PLACEMENTS["one-device"], **FLOAT32)
    save(tmp_path, trainer, trainer.init())
    with pytest.raises(ConfigError, match=r"optimizer\.ema"):
        SavedWeights(tmp_path, average=True)


def test_a_schedule_free_optimizer_is_evaluated_at_the_weights_that_optax_says(float64):
    optimizer = optax.contrib.schedule_free_sgd(0.1, warmup_steps=2)
    trainer = make_trainer(optimizer, PLACEMENTS["microbatches"])
    state = trainer.init()
    for _ in range(3):
        state, _ = trainer.step(state, make_batch())
    found = trainer.weights(averaged_state(state))["tower"]["out/kernel"]
    inner = state.stages["tower.1"].opt_state
    train_end = train_on_one_device(optimizer)["tower"]["out/kernel"]
    expected = (train_end - (1 - inner.b1) * np.asarray(inner.z["out/kernel"])) / inner.b1
    np.testing.assert_allclose(found, expected, rtol=1e-9)
