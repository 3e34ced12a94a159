"""Refuse an optimizer that would change with the placement: one whose update of a weight depends on other weights.

Each stage of each module runs the optimizer on its own weights. A norm over all of them, as in
`optax.clip_by_global_norm`, would there be one over those of a stage. Whether an update depends on other weights is
read from the equations of the optimizer, traced for all weights of a module: no gradient has to be found that shows it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from hetjax.errors import ConfigError
from hetjax.optimizers.dataflow import dependencies, primitives
from hetjax.optimizers.layerwise import LayerwiseOptimizer, Needs, Transform, Weight, as_transformation

_NAMED = 3
"""Weights that an error names."""

_FACTORIZATIONS = frozenset({"qr", "geqrf", "householder_product", "eigh", "eig", "svd", "schur", "lu", "cholesky"})
"""Primitives that factor a matrix in a call that no partitioner splits."""

_RANDOM = ("random_", "threefry", "rng_")
"""How names of primitives begin that draw random numbers."""


def make_layerwise(
    module: str, transform: Transform, weights: dict[str, Weight], *, scale: float = 1.0
) -> tuple[LayerwiseOptimizer, Needs]:
    """Return the optimizer of a module, its steps times `scale`, and what its updates need.

    Raises ConfigError for one that fails on the module's weights, that couples weights or that draws random numbers.
    """
    if not (callable(getattr(transform, "init", None)) and callable(getattr(transform, "update", None))):
        raise ConfigError(
            f"optimizer of module '{module}' is {transform!r}; give an optax transformation, such as optax.adamw(1e-3)"
        )
    if scale != 1:
        # Last in the chain, so that it scales all of the step, decoupled weight decay included.
        transform = optax.chain(as_transformation(transform), optax.scale(scale))
    try:
        optimizer = LayerwiseOptimizer(transform, weights)
    except Exception as error:  # whatever a function of the user raises
        raise _failed(module, "its init", error) from error
    return optimizer, _check(module, optimizer)


def _check(module: str, optimizer: LayerwiseOptimizer) -> Needs:
    """Return what the updates need. Raises ConfigError for those that depend on other weights."""
    avals = {path: weight.aval for path, weight in optimizer.weights.items()}
    loss = jax.ShapeDtypeStruct((), jnp.result_type(jnp.float32, *(weight.dtype for weight in avals.values())))
    paths = sorted(avals)  # as trees of dicts are flattened

    def update(gradients, params, state, value) -> tuple[dict, optax.OptState]:
        updates, after = optimizer.transform.update(gradients, state, params, value=value)
        jax.tree.map(lambda *_: None, updates, gradients)  # an update for each weight
        return updates, tuple(optimizer.structure.flatten_up_to(after))

    try:
        traced = jax.make_jaxpr(update)(avals, avals, optimizer.layer_state, loss)
    except Exception as error:
        raise _failed(module, "its update", error) from error
    names = set(primitives(traced))
    if drawn := next((name for name in sorted(names) if name.startswith(_RANDOM)), None):
        raise ConfigError(
            f"optimizer of module '{module}' draws random numbers ({drawn}), as optax.add_noise does; they would "
            "depend on how weights are cut into layers and stages. Take it out of the chain"
        )
    bits = {path: 1 << i for i, path in enumerate(paths)}
    of_loss = 1 << len(paths)
    own = [bits[path] for path in paths]
    owned = [0 if owner is None else bits[owner] for owner in optimizer.owners]
    state = list(owned)
    while True:
        found = dependencies(traced, [*own, *own, *state, of_loss])
        after = [before | now for before, now in zip(state, found[len(paths) :], strict=True)]
        if after == state:
            break
        state = after
    for path, labels in zip(paths, found, strict=False):
        _check_labels(module, f"the update of {path}", labels & ~of_loss, bits, bits[path])
    keyed, _ = jax.tree_util.tree_flatten_with_path(optimizer.layer_state)
    for (keys, _), labels, allowed in zip(keyed, state, owned, strict=True):
        what = f"the optimizer's state {jax.tree_util.keystr(keys, simple=True, separator='/')}"
        _check_labels(module, what, labels & ~of_loss, bits, allowed)
    return Needs(
        loss=any(labels & of_loss for labels in (*found[: len(paths)], *state)),
        whole_weights=bool(names & _FACTORIZATIONS),
    )


def _check_labels(module: str, what: str, labels: int, bits: dict[str, int], allowed: int) -> None:
    if not labels & ~allowed:
        return
    others = [path for path, bit in bits.items() if bit & labels & ~allowed]
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    raise ConfigError(
        f"optimizer of module '{module}' couples weights: {what} depends on {', '.join(others[:_NAMED])}{more}. Each "
        "stage of a module runs its optimizer on its own weights, so that the result would depend on the placement. To "
        "clip by the norm of all gradients use max_grad_norm (Trainer(max_grad_norm=...), optimizer.max_grad_norm) in "
        "place of optax.clip_by_global_norm; take anything else that joins weights (one step size or one condition for "
        "all of them) out of the chain"
    )


def _failed(module: str, what: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"optimizer of module '{module}': {what} fails on the module's weights, {type(error).__name__}: "
        f"{str(error).strip()[:600]}\n  It sees {{path: array}} of the module's trained weights, those of layers that "
        "are stacked with the shape of one, and gets `value`, the loss, too; trees of labels and masks have that form. "
        "One that needs more (value_fn, grad, obj_fn) does not work here"
    )
