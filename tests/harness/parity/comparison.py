"""A trainer of the problem in any layout, against the oracle."""

import functools
from collections.abc import Collection

import numpy as np
import optax

from hetjax import Trainer
from hetjax.meshes import Layout, Placement
from tests.harness.parity.oracle import relative_error, train_on_one_device
from tests.harness.parity.problem import MAX_GRAD_NORM, STEPS, make_batch, make_graph, make_optimizer

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


@functools.cache
def expected(dtype: str, layers: int = 2):
    optimizer = optax.chain(optax.clip_by_global_norm(MAX_GRAD_NORM), make_optimizer())
    return train_on_one_device(make_graph(layers), make_batch(), optimizer, steps=STEPS, dtype=dtype)


def make_trainer(
    layouts: tuple[Layout, Layout], dtype: str, schedule: str, microbatches: int, *, layers: int = 2, **options
) -> Trainer:
    return Trainer(
        make_graph(layers),
        Placement(dict(zip(("vision", "llm"), layouts, strict=True))),
        optimizer=make_optimizer(),
        schedule=schedule,
        microbatches=microbatches,
        max_grad_norm=MAX_GRAD_NORM,
        param_dtype=dtype,
        compute_dtype=dtype,
        **options,
    )


def largest_errors(trainer: Trainer, dtype: str, batch=None, layers: int = 2, history=None) -> dict[str, float]:
    """The largest relative error over three steps: of the losses, of any gradient, of any weight.

    Args:
        history: what `expected` gives, where another process has worked it out.
    """
    batch = make_batch() if batch is None else batch
    state = trainer.init()
    errors = {"loss": 0.0, "gradient": 0.0, "weight": 0.0}
    for loss, gradients, weights in expected(dtype, layers) if history is None else history:
        _, actual_gradients = trainer.loss_and_gradients(state, batch)
        state, metrics = trainer.step(state, batch)
        actual_weights = trainer.weights(state)
        found = {
            "loss": [relative_error(metrics["loss"], loss)],
            "gradient": [relative_error(actual_gradients[m][p], g) for m in gradients for p, g in gradients[m].items()],
            "weight": [relative_error(actual_weights[m][p], w) for m in weights for p, w in weights[m].items()],
        }
        errors = {what: max((errors[what], *values)) for what, values in found.items()}
    return errors


def assert_trains_alike(
    trainer: Trainer, batch, history, *, limit: float, label: str, frozen: Collection[str] = ()
) -> None:
    """Losses of all steps, gradients of the first and weights after the last are those of one device.

    Args:
        history: what `train_on_one_device` gives.
        limit: what every relative error is below.
        label: the case, for what is printed.
        frozen: parts ("vision.layers") that have no gradient.
    """
    state = trainer.init()
    _, found = trainer.loss_and_gradients(state, batch)
    errors = {}
    for step, (loss, *_) in enumerate(history):
        state, metrics = trainer.step(state, batch)
        errors["loss", step] = relative_error(np.asarray(metrics["loss"]), loss)
    for kind, ours, theirs in (("gradient", found, history[0][1]), ("weight", trainer.weights(state), history[-1][2])):
        for module, arrays in theirs.items():
            for path, array in arrays.items():
                if kind == "gradient" and f"{module}.{path.partition('/')[0]}" in frozen:
                    assert path not in ours[module], path
                else:
                    errors[kind, module, path] = relative_error(ours[module][path], array)
    worst = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    print(f"{label}: {errors[worst]:.1e} ({worst})")
    assert errors[worst] < limit, (worst, errors[worst])


def assert_equal(errors: dict[str, float], dtype: str) -> None:
    assert max(errors.values()) <= TOLERANCE[dtype], errors
