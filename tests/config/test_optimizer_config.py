"""The optimizer's settings: names, arguments, schedules, groups, the average."""

import jax
import numpy as np
import optax
import pytest

from hetjax.config.build import build_graph
from hetjax.config.build_optimizer import build_optimizers, group_of_weights, learning_rate
from hetjax.config.optimizer_config import GroupConfig, OptimizerConfig
from hetjax.errors import ConfigError
from hetjax.optimizers.schedules import rest_of_schedule

WRONG = {
    "an unknown name": ({"name": "moun"}, ["moun", "did you mean 'muon'"]),
    "an unknown argument": ({"name": "sgd", "arguments": {"momentom": 0.9}}, ["momentom", "did you mean 'momentum'"]),
    "a learning rate twice": ({"arguments": {"learning_rate": 1.0}}, ["optimizer.learning_rate"]),
    "an argument twice": ({"epsilon": 1e-3, "arguments": {"eps": 1e-3}}, ["epsilon", "eps"]),
    "a decay of sgd": ({"name": "sgd", "weight_decay": 0.1}, ["sgd", "weight_decay"]),
    "a moment of sgd": ({"name": "sgd", "beta2": 0.9}, ["sgd", "b2"]),
    "a fall of another schedule": ({"decay_steps": 3}, ["decay_steps", "wsd"]),
    "an end of a constant": ({"schedule": "constant", "final_learning_rate": 0.1}, ["constant"]),
    "an average of one": ({"ema": 1.0}, ["ema", "0.999"]),
    "a group of sgd that decays": (
        {"name": "sgd", "groups": [GroupConfig(paths=["llm"], weight_decay=0.1)]}, ["sgd", "llm"]
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "words"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_refused_by_name(settings, words):
    with pytest.raises(ConfigError) as error:
        OptimizerConfig(learning_rate=1e-3, **settings)
    for word in words:
        assert word in str(error.value)


def test_a_group_that_trains_nothing_and_scales_it_is_refused():
    with pytest.raises(ConfigError, match="frozen"):
        GroupConfig(paths=["llm"], frozen=True, learning_rate_scale=0.5)


COURSES = {
    "cosine": (lambda s: 0.1 + 0.9 * (1 + np.cos(np.pi * (s - 4) / 16)) / 2, {"final_learning_rate": 0.1}),
    "linear": (lambda s: 1 - 0.9 * (s - 4) / 16, {"final_learning_rate": 0.1}),
    "constant": (lambda s: 1.0, {}),
    "wsd": (lambda s: 1.0 if s <= 15 else 1 - (s - 15) / 5, {"decay_steps": 5}),
    "inverse_root": (lambda s: np.sqrt(4 / s), {}),
}


@pytest.mark.parametrize("kind", COURSES)
def test_a_schedule_rises_for_its_warm_up_and_then_takes_its_course(kind):
    course, settings = COURSES[kind]
    rate = learning_rate(OptimizerConfig(learning_rate=1.0, schedule=kind, warmup_steps=4, **settings), 20)
    expected = [step / 4 if step <= 4 else course(step) for step in range(1, 21)]
    np.testing.assert_allclose([rate(done) for done in range(20)], expected, atol=1e-6)
    assert np.isfinite(learning_rate(OptimizerConfig(learning_rate=1.0, schedule=kind), 20)(0)), "no warm-up"


def test_a_run_that_goes_on_says_what_its_learning_rate_will_be():
    settings = OptimizerConfig(learning_rate=1.0, schedule="linear")
    text = rest_of_schedule(
        "linear", learning_rate(settings, 20), learning_rate(settings, 10), done=5, steps=20, before=10
    )
    assert "had 10 steps and now has 20" in text
    assert "would have been 0.4 now: 0.7 at step 6" in text
    assert text.endswith("0 at step 20")


def _updates(config, settings: dict):
    """The first update of every weight, of ones by a gradient of ones."""
    graph = build_graph(config.model)
    optimizers = build_optimizers(OptimizerConfig(learning_rate=1.0, **settings), graph, 10)
    found = {}
    for module, transform in optimizers.items():
        groups = group_of_weights(OptimizerConfig(learning_rate=1.0), graph)[module]
        ones = {path: np.ones((2, 2) if path.endswith(("kernel", "embedding")) else 2, np.float32) for path in groups}
        state = transform.init(ones)
        updates, _ = optax.with_extra_args_support(transform).update(ones, state, ones)
        found |= {f"{module}.{path}": float(np.ravel(update)[0]) for path, update in jax.device_get(updates).items()}
    return found


def test_groups_scale_rates_and_set_decay_and_the_first_that_names_a_weight_has_it(make_config):
    groups = [
        GroupConfig(paths=["llm.embedding"], learning_rate_scale=0.5, weight_decay=0.0),
        GroupConfig(paths=["llm", "*norm*"], weight_decay=0.2),
    ]
    found = _updates(
        make_config(),
        {"schedule": "constant", "weight_decay": 0.1, "groups": groups, "learning_rate_scale": {"vision": 0.1}},
    )
    adam = 1 / (1 + 1e-8)
    expected = {
        "llm.embedding": -0.5 * adam,
        "llm.head/kernel": -(adam + 0.2),
        "llm.norm/scale": -(adam + 0.2),
        "vision.layers/block/mlp_norm/scale": -0.1 * (adam + 0.2),
        "vision.layers/block/mlp/up/kernel": -0.1 * (adam + 0.1),
        "vision.layers/block/mlp/up/bias": -0.1 * adam,
    }
    for name, update in expected.items():
        assert np.isclose(found[name], update, rtol=1e-5), name


def test_a_group_that_names_no_weight_is_refused_with_the_parts_of_the_model(make_trainer):
    with pytest.raises(ConfigError, match=r"llm\.embeding.*llm\.embedding"):
        make_trainer("--optimizer.groups", "[{paths: [llm.embeding], weight_decay: 0.0}]")


def test_frozen_groups_have_no_optimizer_state_and_muon_trains_the_rest(make_trainer):
    trainer = make_trainer(
        "--optimizer.groups", '[{paths: [vision, "llm.*norm*"], frozen: true}]', "--optimizer.name", "muon",
        "--optimizer.ema", "0.9",
    )  # fmt: skip
    assert set(trainer.updates) == {"llm"}
    stage = next(stage for stage in trainer.stages if stage.name == "llm")
    assert stage.frozen == {path for path in stage.params if "norm" in path}


def test_an_average_is_asked_for_only_where_one_is_kept(make_config):
    with pytest.raises(ConfigError, match=r"optimizer\.ema"):
        make_config("--eval.weights", "average")
    assert make_config("--eval.weights", "average", "--optimizer.ema", "0.9").eval.weights == "average"
