"""Has an optimizer see one layer at a time, and in each stage of a module all of the module's weights.

Weights of layers are stacked, [L, ...], and a pipeline stage holds some of the L. A norm, a factored moment or a
Newton-Schulz iteration over such an array would mix layers, and change with the number of stages. So the optimizer runs
under `jax.vmap` over the layers: to it a weight has the shape of one layer, as in a model whose layers are not stacked.
Weights of other stages are there too, as zeros whose results are dropped, so that trees of labels and masks fit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from hetjax.stages.flat_state import Arrays, Shapes

Transform: TypeAlias = optax.GradientTransformation | optax.MultiSteps
"""An optimizer as people have them; `optax.MultiSteps` has the two methods of a transformation, and is none."""


def as_transformation(transform: Transform) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer as a transformation that takes extra arguments, whether or not it has a use for them."""
    if isinstance(transform, optax.MultiSteps):
        transform = transform.gradient_transformation()
    return optax.with_extra_args_support(transform)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight:
    """A weight of a module as its optimizer sees it.

    Attributes:
        shape, dtype: of one layer.
        layer_dims: how many dims of layers lead the module's array.
    """

    shape: tuple[int, ...]
    dtype: jnp.dtype
    layer_dims: int

    @property
    def aval(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one layer."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


class Needs(NamedTuple):
    """What the updates of an optimizer need beside gradients, weights and state.

    Attributes:
        loss: the loss of the step.
        whole_weights: all of a weight on each device, where a matrix is factored (SOAP, GaLore).
    """

    loss: bool = False
    whole_weights: bool = False


class LayerwiseOptimizer:
    """An optax transform over the trained weights of a module, of which a stage holds some.

    Args:
        transform: the optimizer; `update` gives it the loss as `value`, if it takes that.
        weights: every trained weight of the module, by path.

    Attributes:
        transform: the optimizer, which takes extra arguments.
        owners: for each leaf of its state the path of the weight that it is for, or None where it is for none, as a
            count of steps; found by the path among the keys of the leaf.

    A state is the optimizer's own tree. What belongs to a weight of other stages is None, what belongs to one of
    stacked layers leads with their dims.
    """

    def __init__(self, transform: Transform, weights: Mapping[str, Weight]):
        self.transform = as_transformation(transform)
        self.weights = dict(weights)
        self.layer_state = jax.eval_shape(self.transform.init, {path: w.aval for path, w in self.weights.items()})
        keyed, self.structure = jax.tree_util.tree_flatten_with_path(self.layer_state)
        self.owners = tuple(self._owner(path) for path, _ in keyed)

    def _owner(self, keys: jax.tree_util.KeyPath) -> str | None:
        named = (key.key for key in keys if isinstance(key, jax.tree_util.DictKey))
        return next((name for name in named if name in self.weights), None)

    def init(self, params: Arrays) -> optax.OptState:
        """Return the state before the first step, for the weights that are given."""
        paths = list(params)
        held = self._held(params)
        layers = self._layers(params)

        def one_layer(arrays: Sequence[jax.Array]) -> list[jax.Array]:
            state = self.transform.init(self._whole(dict(zip(paths, arrays, strict=True))))
            leaves = self.structure.flatten_up_to(state)
            return [jnp.asarray(leaves[i]) for i in held]

        made = _over_layers(one_layer, [layers[path] for path in paths], [layers.get(self.owners[i]) for i in held])
        merged = made([self._merged(path, params[path]) for path in paths])
        return self._tree(held, [self._apart(i, array, params) for i, array in zip(held, merged, strict=True)])

    def update(
        self, gradients: Arrays, state: optax.OptState, params: Arrays, value: jax.Array
    ) -> tuple[Arrays, optax.OptState]:
        """Return (what is added to the weights, the state after the step) of the weights that are given.

        `value` is the loss of the step, a scalar.
        """
        paths = list(params)
        held = self._held(params)
        layers = self._layers(params)

        def one_layer(arrays: Sequence[jax.Array]) -> list[jax.Array]:
            own_gradients, own_params, own_state, (value,) = _parts(arrays, len(paths), len(paths), len(held), 1)
            updates, after = self.transform.update(
                self._whole(dict(zip(paths, own_gradients, strict=True))),
                self._whole_state(held, own_state),
                self._whole(dict(zip(paths, own_params, strict=True))),
                value=value,
            )
            leaves = self.structure.flatten_up_to(after)
            return [*(updates[path] for path in paths), *(leaves[i] for i in held)]

        of_paths = [layers[path] for path in paths]
        of_state = [layers.get(self.owners[i]) for i in held]
        made = _over_layers(one_layer, [*of_paths, *of_paths, *of_state, None], [*of_paths, *of_state])
        merged = [self._merged(path, arrays[path]) for arrays in (gradients, params) for path in paths]
        merged += [self._merged(self.owners[i], leaf) for i, leaf in zip(held, jax.tree.leaves(state), strict=True)]
        updates, after = _parts(made([*merged, value]), len(paths), len(held))
        return (
            {path: update.reshape(params[path].shape) for path, update in zip(paths, updates, strict=True)},
            self._tree(held, [self._apart(i, array, params) for i, array in zip(held, after, strict=True)]),
        )

    def state_shapes(self, params: Shapes) -> optax.OptState:
        """Return shapes and dtypes of the state, for the weights that are given; no shardings."""
        held = self._held(params)
        avals = self.structure.flatten_up_to(self.layer_state)
        found = []
        for i in held:
            owner = self.owners[i]
            layers = () if owner is None else params[owner].shape[: self.weights[owner].layer_dims]
            found.append(jax.ShapeDtypeStruct((*layers, *avals[i].shape), avals[i].dtype))
        return self._tree(held, found)

    def owners_of(self, params: Shapes) -> list[str | None]:
        """Return `owners` of the leaves that a state has for the weights that are given."""
        return [self.owners[i] for i in self._held(params)]

    # ── between a stage's arrays and what the optimizer sees ─────────────────────────────────────

    def _held(self, params: Mapping[str, jax.Array | jax.ShapeDtypeStruct]) -> list[int]:
        """The leaves of the optimizer's state that a state for these weights has."""
        return [i for i, owner in enumerate(self.owners) if owner is None or owner in params]

    def _layers(self, params: Mapping[str, jax.Array]) -> dict[str, int | None]:
        """How many layers each weight has; None where it is of none."""
        dims = {path: self.weights[path].layer_dims for path in params}
        return {path: math.prod(params[path].shape[:count]) if count else None for path, count in dims.items()}

    def _merged(self, path: str | None, array: jax.Array) -> jax.Array:
        """An array with all dims of layers in one."""
        dims = 0 if path is None else self.weights[path].layer_dims
        return array if dims <= 1 else array.reshape(-1, *array.shape[dims:])

    def _apart(self, leaf: int, array: jax.Array, params: Mapping[str, jax.Array]) -> jax.Array:
        """The reverse, for a leaf of the state."""
        owner = self.owners[leaf]
        dims = 0 if owner is None else self.weights[owner].layer_dims
        return array if dims <= 1 else array.reshape(*params[owner].shape[:dims], *array.shape[1:])

    def _whole(self, arrays: Arrays) -> Arrays:
        """The arrays of one layer of the whole module, zeros for those of other stages."""
        return {path: arrays.get(path, _zeros(weight.aval)) for path, weight in self.weights.items()}

    def _whole_state(self, held: Sequence[int], leaves: Sequence[jax.Array]) -> optax.OptState:
        own = dict(zip(held, leaves, strict=True))
        avals = self.structure.flatten_up_to(self.layer_state)
        return self.structure.unflatten([own.get(i, _zeros(aval)) for i, aval in enumerate(avals)])

    def _tree(self, held: Sequence[int], leaves: Sequence[jax.Array]) -> optax.OptState:
        own = dict(zip(held, leaves, strict=True))
        return self.structure.unflatten([own.get(i) for i in range(len(self.owners))])


def _over_layers(
    function: Callable[[Sequence[jax.Array]], list[jax.Array]],
    inputs: Sequence[int | None],
    outputs: Sequence[int | None],
) -> Callable[[Sequence[jax.Array]], list[jax.Array]]:
    """Map a function of lists over the leading dim of the inputs and outputs that have as many layers as is said.

    Weights of unlike numbers of layers do not depend on each other (`hetjax.optimizers.coupling`), so that what
    is mapped over the layers of one leaves the others unmapped.
    """
    for count in sorted({count for count in inputs if count is not None}):
        function = jax.vmap(
            function,
            in_axes=([0 if each == count else None for each in inputs],),
            out_axes=[0 if each == count else None for each in outputs],
            axis_size=count,
        )
    return function


def _zeros(aval: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(aval.shape, aval.dtype)


def _parts(values: Sequence[jax.Array], *sizes: int) -> list[Sequence[jax.Array]]:
    """Cut a list into lists of these sizes."""
    found, start = [], 0
    for size in sizes:
        found.append(values[start : start + size])
        start += size
    return found
