"""One training step as a JAX user would write it without this library: a single jitted function.

It does the same work as `hetjax.Trainer.step` on one mesh, and is what that step's time is compared with.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from hetjax.graph import ModuleGraph
from hetjax.meshes import Layout
from hetjax.models.parallel.layout_in_force import layout_in_force
from hetjax.stages.batch import Batch
from hetjax.stages.flat_state import Arrays, flatten_module

# M microbatches · B samples of a microbatch

Params = dict[str, Arrays]
"""The weights of each module by path."""

Inputs = dict[str, Arrays]
"""The arrays of each module's ports."""

LossAndGradients = tuple[jax.Array, Params]


class PlainStep:
    """Train encoder and language model by one program: value_and_grad, summed over microbatches by `lax.scan`.

    The gradient is clipped by its global norm and goes into `optimizer`; weights and optimizer state are
    donated. `layout` lays out weights and activations on `mesh`, for both modules alike.
    """

    def __init__(
        self,
        graph: ModuleGraph,
        mesh: Mesh,
        layout: Layout,
        *,
        optimizer: optax.GradientTransformation,
        max_grad_norm: float,
        microbatches: int,
    ):
        self.mesh, self.layout, self.microbatches = mesh, layout, microbatches
        self.optimizer = optax.chain(optax.clip_by_global_norm(max_grad_norm), optimizer)
        self._skeletons = {name: flatten_module(graph.abstract(name))[0] for name in graph.order}
        self._step = jax.jit(self._train, donate_argnums=(0, 1))

    def init(self, weights: dict[str, dict[str, np.ndarray]]) -> tuple[Params, optax.OptState]:
        """Return (weights on the mesh, fresh optimizer state) from host arrays by module and path."""
        shardings = {
            name: {path: self._weight_sharding(name, path, array) for path, array in arrays.items()}
            for name, arrays in weights.items()
        }
        params = jax.device_put(weights, shardings)
        mirror = optax.tree_map_params(
            self.optimizer,
            lambda _, sharding: sharding,
            jax.eval_shape(self.optimizer.init, params),
            shardings,
            transform_non_params=lambda _: NamedSharding(self.mesh, PartitionSpec()),
        )
        return params, jax.jit(self.optimizer.init, out_shardings=mirror)(params)

    def step(
        self, params: Params, opt_state: optax.OptState, batch: Batch
    ) -> tuple[Params, optax.OptState, Float[Array, ""]]:
        """Dispatch one step and return (weights, optimizer state, loss).

        Consumes `params` and `opt_state`; `batch` is on the host.
        """
        placed = {
            module: {port: self._place(array) for port, array in inputs.items()} for module, inputs in batch.items()
        }
        return self._step(params, opt_state, placed, np.float32(1 / batch["llm"]["loss_weights"].sum()))

    def _weight_sharding(self, module: str, path: str, array: np.ndarray) -> NamedSharding:
        dims = self._skeletons[module].dims.get(path, (None,) * array.ndim)
        return NamedSharding(self.mesh, self.layout.weight_spec(dims, array.shape, name=path))

    def _place(self, array: np.ndarray) -> jax.Array:
        """Return a batch as [M, B, ...], the samples of every microbatch spread over the mesh."""
        split = array.reshape(self.microbatches, -1, *array.shape[1:])
        dims = (None, "batch", *[None] * (array.ndim - 1))
        return jax.device_put(
            split, NamedSharding(self.mesh, self.layout.activation_spec(dims, split.shape, name="batch"))
        )

    def _train(
        self, params: Params, opt_state: optax.OptState, batch: Inputs, scale: Float[Array, ""]
    ) -> tuple[Params, optax.OptState, Float[Array, ""]]:
        def add(carry: LossAndGradients, microbatch: Inputs) -> tuple[LossAndGradients, None]:
            loss_and_gradients = jax.value_and_grad(lambda params: self._loss(params, microbatch) * scale)(params)
            return jax.tree.map(jnp.add, carry, loss_and_gradients), None

        zeros = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)
        (loss, gradients), _ = jax.lax.scan(add, zeros, batch)
        updates, opt_state = self.optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def _loss(self, params: Params, inputs: Inputs) -> Float[Array, ""]:
        def constraint(x: jax.Array, dims: tuple[str | None, ...]) -> jax.Array:
            spec = self.layout.activation_spec(dims, x.shape, name="activation")
            return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

        modules = {name: skeleton.assemble(params[name], {}) for name, skeleton in self._skeletons.items()}
        with layout_in_force(constraint if self.mesh.size > 1 else lambda x, dims: x):
            tokens = modules["vision"](**inputs["vision"])["tokens"]
            return modules["llm"](**inputs["llm"], image_tokens=tokens)["loss"]
