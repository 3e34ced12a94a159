"""One stage's update: optax on the stage's mesh, clipped by the gradient norm over all modules."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from hetjax.compilation.dispatch_order import in_order
from hetjax.stages.flat_state import Arrays
from hetjax.stages.stage import Stage


class Update:
    """The optimizer programs of a stage that trains.

    Attributes:
        opt_state: shape, dtype and sharding of the optimizer's tree: what mirrors a weight is laid out as the weight;
            what has another shape (a factored second moment, a step count) is on every device of the mesh.
    """

    def __init__(
        self,
        stage: Stage,
        optimizer: optax.GradientTransformation,
        *,
        learning_rate_scale: float,
        max_grad_norm: float | None,
    ):
        self.stage = stage
        self.max_grad_norm = max_grad_norm
        # Last in the chain, so that it scales all of the step, decoupled weight decay included.
        self.optimizer = (
            optimizer if learning_rate_scale == 1 else optax.chain(optimizer, optax.scale(learning_rate_scale))
        )
        self.opt_state = self._placed_opt_state()
        self.norm_dtype = jnp.result_type(jnp.float32, *(aval.dtype for aval in stage.trained.values()))

    def _placed_opt_state(self) -> Any:
        params = self.stage.trained

        def placed(aval: jax.ShapeDtypeStruct, param: jax.ShapeDtypeStruct | None = None) -> jax.ShapeDtypeStruct:
            mirrors = param is not None and aval.shape == param.shape
            sharding = param.sharding if mirrors else self.stage.replicated
            return jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding)

        opt_state = jax.eval_shape(self.optimizer.init, params)
        return optax.tree_map_params(self.optimizer, placed, opt_state, params, transform_non_params=placed)

    # ── the programs, as pure functions ──────────────────────────────────────────────────────────

    def _prepare(self, params: Arrays) -> tuple[Arrays, Arrays]:
        """The weights to compute with, where they differ from the master weights, and gradients of zero."""
        compute = {
            # Cast before parts of it are gathered: fewer bytes move.
            path: jax.lax.with_sharding_constraint(params[path].astype(aval.dtype), self.stage.params[path].sharding)
            for path, aval in self.stage.cast_params.items()
        }
        return compute, {path: jnp.zeros(aval.shape, aval.dtype) for path, aval in self.stage.gradients.items()}

    def _reduce(self, gradients: Arrays) -> tuple[Arrays, jax.Array]:
        """The shards' gradients added up where each keeps its own, and the sum of the squares."""
        if self.stage.gradient_shards > 1:
            gradients = {path: jnp.sum(gradient, axis=0) for path, gradient in gradients.items()}
        squares = (jnp.sum(jnp.square(g.astype(self.norm_dtype))) for g in gradients.values())
        return gradients, sum(squares, start=jnp.zeros((), self.norm_dtype))

    def _update(self, params: Arrays, opt_state: Any, gradients: Arrays, square_sum: jax.Array) -> tuple[Arrays, Any]:
        if self.max_grad_norm is not None:
            norm = jnp.sqrt(square_sum)
            # As optax.clip_by_global_norm: untouched below the limit, else scaled down to it.
            factor = jnp.where(norm < self.max_grad_norm, 1.0, self.max_grad_norm / norm)
            gradients = {path: g * factor.astype(g.dtype) for path, g in gradients.items()}
        updates, opt_state = self.optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    # ── compilation and running ──────────────────────────────────────────────────────────────────

    def compile(self) -> Update:
        """Compile all of them."""
        stage = self.stage
        params = {path: aval.sharding for path, aval in stage.trained.items()}
        cast = {path: aval.sharding for path, aval in self.stage.cast_params.items()}
        opt_state = jax.tree.map(lambda aval: aval.sharding, self.opt_state)
        scalar = jax.ShapeDtypeStruct((), self.norm_dtype, sharding=stage.replicated)
        gradients = {path: aval.sharding for path, aval in stage.gradients.items()}
        prepare = jax.jit(self._prepare, out_shardings=(cast, gradients))
        # Where they are of one shard each, there is nothing to add up, and they stay where they are.
        donated = () if stage.gradient_shards > 1 else (0,)
        reduce = jax.jit(self._reduce, donate_argnums=donated, out_shardings=(params, stage.replicated))
        update = jax.jit(self._update, donate_argnums=(0, 1), out_shardings=(params, opt_state))
        self._prepare_program = in_order(prepare.lower(stage.params).compile(), stage.mesh)
        self._reduce_program = in_order(reduce.lower(stage.gradients).compile(), stage.mesh)
        self._update_program = in_order(
            update.lower(stage.trained, self.opt_state, stage.trained, scalar).compile(), stage.mesh
        )
        return self

    @property
    def programs(self) -> tuple[Any, ...]:
        """What was compiled: prepare, reduce, update."""
        return self._prepare_program, self._reduce_program, self._update_program

    def init(self, params: Arrays) -> Any:
        """The optimizer's state before the first step."""
        shardings = jax.tree.map(lambda aval: aval.sharding, self.opt_state)
        return in_order(jax.jit(self.optimizer.init, out_shardings=shardings), self.stage.mesh)(self._trained(params))

    def prepare(self, params: Arrays) -> tuple[Arrays, Arrays]:
        """Dispatch: (weights to compute with, gradients of zero)."""
        cast, zeros = self._prepare_program(params)
        return {**params, **cast}, zeros

    def reduce(self, gradients: Arrays) -> tuple[Arrays, jax.Array]:
        """Dispatch: (gradients of the whole batch, laid out as the weights; the sum of their squares).

        Consumes `gradients`.
        """
        return self._reduce_program(gradients)

    def update(self, params: Arrays, opt_state: Any, gradients: Arrays, square_sum: jax.Array) -> tuple[Arrays, Any]:
        """Dispatch: (weights, optimizer state) after the step. Consumes the first two arguments, but for weights that
        are frozen."""
        trained, opt_state = self._update_program(self._trained(params), opt_state, gradients, square_sum)
        return {path: trained.get(path, params[path]) for path in params}, opt_state

    def _trained(self, params: Arrays) -> Arrays:
        return {path: params[path] for path in self.stage.trained}
