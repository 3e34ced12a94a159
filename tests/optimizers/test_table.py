"""Every optimizer of a table on every placement: the weights of plain optax on one device, or a refusal that names the
way. Plain optax has one tree of all modules' weights, each layer's an array of its own."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from hetjax.errors import ConfigError
from tests.harness.optimizers import (
    PLACEMENTS,
    largest_error,
    make_trainer,
    soap,
    train,
    train_on_one_device,
)


def _kind(path, leaf) -> str:
    return "matrix" if leaf.ndim == 2 else "vector"


def _labels(params):
    return jax.tree_util.tree_map_with_path(_kind, params)


def _matrices(params):
    return jax.tree.map(lambda p: p.ndim == 2, params)


OPTIMIZERS = {
    "adamw": lambda: optax.adamw(1e-2, eps=1e-3, weight_decay=0.1, mask=_matrices),
    "sgd": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "lion": lambda: optax.lion(1e-3, weight_decay=0.1),
    "lamb": lambda: optax.lamb(1e-2, eps=1e-3, weight_decay=0.1),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4, weight_decay_rate=1e-3),
    "muon": lambda: optax.contrib.muon(1e-2, eps=1e-3, weight_decay=0.1),
    "multi_transform": lambda: optax.multi_transform(
        {"matrix": optax.contrib.muon(1e-2, eps=1e-3), "vector": optax.adam(1e-2, eps=1e-3)}, _labels
    ),
    "partition": lambda: optax.partition({"matrix": optax.sgd(0.1), "vector": optax.set_to_zero()}, _labels),
    "masked": lambda: optax.chain(
        optax.scale_by_adam(eps=1e-3), optax.masked(optax.add_decayed_weights(0.1), _matrices), optax.scale(-1e-2)
    ),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(1e-2, eps=1e-3), 2, accumulator_dtype=jnp.float64),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(optax.linear_schedule(1e-2, 0.0, 4), eps=1e-3),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(1e-2, eps=1e-3, warmup_steps=2),
    "soap": lambda: soap(1e-2),
    "reduce_on_plateau": lambda: optax.chain(
        optax.adam(0.3, eps=1e-3), optax.contrib.reduce_on_plateau(factor=0.1, patience=1, rtol=0.9)
    ),
}
TOLERANCE = {"muon": 1e-8, "multi_transform": 1e-8}

# By default: what stages, shards and layers may change, each once.
QUICK = (
    ("muon", "stages"), ("adafactor", "disjoint"), ("lamb", "microbatches"), ("reduce_on_plateau", "microbatches"),
    ("MultiSteps", "stages"), ("soap", "colocated"),
)  # fmt: skip
SLOW = (pytest.mark.slow, pytest.mark.quick)
REST = (pytest.mark.exhaustive, *SLOW)


def marks_of(name: str, place: str) -> tuple:
    """By default the quick ones, in the slow suite each optimizer over stages, and all by `-m exhaustive`."""
    return () if (name, place) in QUICK else SLOW if place == "stages" else REST


CASES = [
    pytest.param(name, place, id=f"{name}-{place}", marks=marks_of(name, place))
    for name in OPTIMIZERS
    for place in PLACEMENTS
]  # fmt: skip


@functools.cache
def expected(name: str):
    return train_on_one_device(OPTIMIZERS[name]())


@pytest.mark.parametrize(("name", "place"), CASES)
def test_three_steps_leave_the_weights_of_plain_optax_on_one_device(name, place, float64):
    found = train(make_trainer(OPTIMIZERS[name](), PLACEMENTS[place]))
    assert largest_error(found, expected(name)) <= TOLERANCE.get(name, 1e-10)


REFUSED = {
    "clip_by_global_norm": (
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)), ["couples weights", "max_grad_norm"]
    ),
    "apply_if_finite": (lambda: optax.apply_if_finite(optax.adam(1e-2), 3), ["couples weights"]),
    "skip_not_finite": (
        lambda: optax.MultiSteps(optax.adam(1e-2), 2, should_skip_update_fn=optax.skip_not_finite), ["couples weights"]
    ),
    "prodigy": (optax.contrib.prodigy, ["couples weights"]),
    "flatten": (lambda: optax.flatten(optax.adam(1e-2)), ["couples weights"]),
    "a norm in the state": (
        lambda: optax.GradientTransformation(lambda _: jnp.zeros(()), lambda u, _, params: (u, optax.global_norm(u))),
        ["couples weights", "state"],
    ),
    "noise": (lambda: optax.chain(optax.add_noise(0.1, 0.5, key=0), optax.sgd(0.1)), ["random numbers"]),
    "line search": (optax.lbfgs, ["value_fn"]),
    "labels of other weights": (
        lambda: optax.partition({"a": optax.sgd(0.1)}, {"layers/kernel": "a"}), ["{path: array}", "labels"]
    ),
    "a number": (lambda: 1e-3, ["optax.adamw"]),
}  # fmt: skip


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED)
def test_what_would_depend_on_the_placement_is_refused_before_any_work_by_an_error_that_names_the_way(make, words):
    with pytest.raises(ConfigError) as error:
        make_trainer(make(), PLACEMENTS["one-device"], param_dtype="float32", compute_dtype="float32")
    assert "optimizer of module 'encoder'" in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_norm_over_all_modules_is_clipped_by_the_setting_that_the_refusal_names(float64):
    """With an encoder that waits in the memory of the host."""
    plain = optax.chain(optax.clip_by_global_norm(0.05), optax.contrib.muon(1e-2, eps=1e-3, beta=0.5))
    found = train(
        make_trainer(
            optax.contrib.muon(1e-2, eps=1e-3, beta=0.5), PLACEMENTS["stages"], max_grad_norm=0.05, offload=["encoder"]
        )
    )
    assert largest_error(found, train_on_one_device(plain)) <= 1e-8


def test_labels_by_tree_fit_a_module_that_is_cut_into_stages_with_frozen_weights_beside(float64):
    """The tree has all weights that train, of which each stage holds some."""
    labels = {"layers/kernel": "muon", "out/kernel": "adam", "out/bias": "none"}
    transforms = {"muon": optax.contrib.muon(1e-2, eps=1e-3), "adam": optax.adam(1e-2, eps=1e-3)}
    own = optax.partition({**transforms, "none": optax.set_to_zero()}, labels)

    def plain(params):
        kinds = {path.split("/")[0]: label for path, label in labels.items() if label != "none"}
        return {
            name: {p: "none" if p == "out/bias" else kinds[p.split("/")[0]] for p in of} for name, of in params.items()
        }

    expected = train_on_one_device(
        optax.partition({**transforms, "none": optax.set_to_zero()}, plain), frozen="encoder"
    )
    trainer = make_trainer({"tower": own}, PLACEMENTS["stages"], frozen=("encoder",))
    assert largest_error(train(trainer), expected) <= 1e-8
