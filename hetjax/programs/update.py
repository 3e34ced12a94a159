"""The optimizer programs of one stage: optax on the stage's mesh, clipped by the gradient norm over all modules."""

from __future__ import annotations

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from hetjax.compilation.compiled_program import Program
from hetjax.optimizers.layerwise import LayerwiseOptimizer, Needs
from hetjax.programs.data_shards import AXIS as DATA
from hetjax.stages.flat_state import Arrays
from hetjax.stages.placed_shapes import shardings_of
from hetjax.stages.stage import Stage

T = TypeVar("T")


class Update:
    """The optimizer programs of a stage that trains.

    Args:
        stage: the stage.
        optimizer: the optimizer of its module.
        needs: what its updates need.
        max_grad_norm: limit of the gradient's norm over all modules; None for no clipping.
        late_gradients: whether the gradients of zero are made by `zeros`, at the first backward, and not by `prepare`.
        skip_bad: whether a step whose gradient's norm over all modules is no finite number changes nothing.

    Attributes:
        opt_state: shape, dtype and sharding of the optimizer's tree: what mirrors a weight is laid out as the weight;
            what has another shape (a factored second moment, a step count) is on every device of the mesh.
        norm_dtype: dtype of the sum of squares, float32 at least.
    """

    def __init__(
        self,
        stage: Stage,
        optimizer: LayerwiseOptimizer,
        *,
        needs: Needs = Needs(),
        max_grad_norm: float | None,
        late_gradients: bool = False,
        skip_bad: bool = False,
    ):
        self.stage = stage
        self.late_gradients, self.skip_bad = late_gradients, skip_bad
        self.max_grad_norm = max_grad_norm
        self.optimizer, self.needs = optimizer, needs
        self.opt_state = self._placed_opt_state()
        self.norm_dtype = jnp.result_type(jnp.float32, *(aval.dtype for aval in stage.trained.values()))

    def _placed_opt_state(self) -> optax.OptState:
        params = self.stage.trained
        leaves, structure = jax.tree.flatten(self.optimizer.state_shapes(params))
        placed = []
        for aval, owner in zip(leaves, self.optimizer.owners_of(params), strict=True):
            mirrors = owner is not None and aval.shape == params[owner].shape
            sharding = params[owner].sharding if mirrors else self.stage.replicated
            placed.append(jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding))
        return structure.unflatten(placed)

    # ── the programs, as pure functions ──────────────────────────────────────────────────────────

    def _prepare(self, params: Arrays) -> tuple[Arrays, Arrays]:
        """The weights to compute with, where they differ from the master weights, and gradients of zero."""
        compute = {
            # Cast before parts of it are gathered: fewer bytes move.
            path: jax.lax.with_sharding_constraint(params[path].astype(aval.dtype), self.stage.params[path].sharding)
            for path, aval in self.stage.cast_params.items()
        }
        return compute, {} if self.late_gradients else self._zeros()

    def _zeros(self) -> Arrays:
        return {path: jnp.zeros(aval.shape, aval.dtype) for path, aval in self.stage.gradients.items()}

    def _reduce(self, gradients: Arrays) -> tuple[Arrays, jax.Array]:
        """The shards' gradients added up where each keeps its own, and the sum of the squares."""
        if self.stage.gradient_shards > 1:
            gradients = {path: self._sum_of_shards(path, gradient) for path, gradient in gradients.items()}
        return gradients, sum_of_squares(gradients, self.norm_dtype)

    def _sum_of_shards(self, path: str, gradient: jax.Array) -> jax.Array:
        """The sum over the leading dim of shards, scattered to the parts that the optimizer holds."""
        one, held = (shapes[path].sharding.spec for shapes in (self.stage.gradients, self.stage.trained))
        scattered = [dim for dim, axes in enumerate(held) if DATA in (axes or ())]

        def add(part: jax.Array) -> jax.Array:
            if not scattered:
                return jax.lax.psum(part[0], DATA)
            return jax.lax.psum_scatter(part[0], DATA, scatter_dimension=scattered[0], tiled=True)

        return jax.shard_map(add, mesh=self.stage.mesh, in_specs=one, out_specs=held, check_vma=False)(gradient)

    def _update(
        self,
        params: Arrays,
        opt_state: optax.OptState,
        gradients: Arrays,
        square_sum: jax.Array,
        loss: jax.Array | None = None,
    ) -> tuple[Arrays, optax.OptState]:
        if self.max_grad_norm is not None:
            norm = jnp.sqrt(square_sum)
            # As optax.clip_by_global_norm: untouched below the limit, else scaled down to it.
            factor = jnp.where(norm < self.max_grad_norm, 1.0, self.max_grad_norm / norm)
            gradients = {path: g * factor.astype(g.dtype) for path, g in gradients.items()}
        value = jnp.zeros((), self.norm_dtype) if loss is None else loss  # of which no result depends, then
        update = self.optimizer.update
        if self.needs.whole_weights:
            # Each device does all of it: the partitioner would factor parts of a matrix as if they were matrices.
            whole = {"in_specs": PartitionSpec(), "out_specs": PartitionSpec()}
            update = jax.shard_map(update, mesh=self.stage.mesh, check_vma=False, **whole)
        updates, after = update(gradients, opt_state, params, value)
        return self._unless_bad(square_sum, (optax.apply_updates(params, updates), after), (params, opt_state))

    def _unless_bad(self, square_sum: jax.Array, after: T, before: T) -> T:
        """What a step makes of its state, or the state before it where the step is bad and such steps are skipped."""
        if not self.skip_bad:
            return after
        is_good = jnp.isfinite(square_sum)
        return jax.tree.map(lambda new, old: jnp.where(is_good, new, old), after, before)

    def _keep_buffers(self, before: Arrays, after: Arrays, square_sum: jax.Array) -> Arrays:
        return self._unless_bad(square_sum, after, before)

    # ── compilation and running ──────────────────────────────────────────────────────────────────

    @functools.cached_property
    def programs(self) -> dict[str, Program]:
        """Those of a step, by name: "prepare", "reduce", "update".

        Where gradients are late also "zeros", and "prepare" only if it casts a weight. Where bad steps are skipped also
        "size", and "keep_buffers" if the stage has buffers.
        """
        stage = self.stage
        params, cast, gradients = map(shardings_of, (stage.trained, stage.cast_params, stage.gradients))
        scalar = jax.ShapeDtypeStruct((), self.norm_dtype, sharding=stage.replicated)
        # Where they are of one shard each, there is nothing to add up, and they stay where they are.
        donated = () if stage.gradient_shards > 1 else (0,)
        late = {"zeros": Program(f"{stage.name} zeros", self._zeros, stage.mesh, out_shardings=gradients)}
        prepare = Program(
            f"{stage.name} prepare",
            self._prepare,
            stage.mesh,
            stage.params,
            out_shardings=(cast, {} if self.late_gradients else gradients),
        )
        return {
            **({"prepare": prepare} if cast or not self.late_gradients else {}),
            **(late if self.late_gradients else {}),
            "reduce": Program(
                f"{stage.name} reduce",
                self._reduce,
                stage.mesh,
                stage.gradients,
                donate=donated,
                out_shardings=(params, stage.replicated),
            ),
            "update": Program(
                f"{stage.name} update",
                self._update,
                stage.mesh,
                *(stage.trained, self.opt_state, stage.trained, scalar),
                *((scalar,) if self.needs.loss else ()),
                donate=(0, 1),
                out_shardings=(params, shardings_of(self.opt_state)),
            ),
            **(self._programs_against_bad_steps(scalar) if self.skip_bad else {}),
        }

    def _programs_against_bad_steps(self, square_sum: jax.ShapeDtypeStruct) -> dict[str, Program]:
        stage, buffers = self.stage, self.stage.buffers
        sizes = functools.partial(sum_of_squares, dtype=self.norm_dtype)
        programs = {
            "size": Program(f"{stage.name} size", sizes, stage.mesh, stage.trained, out_shardings=stage.replicated)
        }
        if buffers:
            arguments = stage.mesh, buffers, buffers, square_sum
            programs["keep_buffers"] = Program(
                f"{stage.name} keep_buffers", self._keep_buffers, *arguments, out_shardings=shardings_of(buffers)
            )
        return programs

    def compile(self) -> Update:
        """Compile all of them."""
        for program in self.programs.values():
            program.compile()
        return self

    @functools.cached_property
    def _init(self) -> Program:
        stage, shardings = self.stage, shardings_of(self.opt_state)
        name = f"{stage.name} optimizer state"
        return Program(name, self.optimizer.init, stage.mesh, stage.trained, out_shardings=shardings)

    def init(self, params: Arrays) -> optax.OptState:
        """Return the optimizer's state before the first step."""
        return self._init(self._trained(params))

    def prepare(self, params: Arrays) -> tuple[Arrays, Arrays]:
        """Dispatch: (weights to compute with, gradients of zero or none where they come late)."""
        if "prepare" not in self.programs:
            return params, {}
        cast, zeros = self.programs["prepare"](params)
        return {**params, **cast}, zeros

    def zeros(self) -> Arrays:
        """Dispatch: gradients of zero, where they come late."""
        return self.programs["zeros"]()

    def reduce(self, gradients: Arrays) -> tuple[Arrays, jax.Array]:
        """Dispatch: (gradients of the whole batch, laid out as the weights; the sum of their squares).

        Consumes `gradients`.
        """
        return self.programs["reduce"](gradients)

    def update(
        self,
        params: Arrays,
        opt_state: optax.OptState,
        gradients: Arrays,
        square_sum: jax.Array,
        loss: jax.Array | None = None,
    ) -> tuple[Arrays, optax.OptState]:
        """Dispatch: (weights, optimizer state) after the step.

        `loss` is that of the step, in `norm_dtype` on the stage's mesh, for an optimizer that uses it. Consumes the
        first two arguments, but for weights that are frozen.
        """
        read = (gradients, square_sum, *((loss,) if self.needs.loss else ()))
        trained, opt_state = self.programs["update"](self._trained(params), opt_state, *read)
        return {path: trained.get(path, params[path]) for path in params}, opt_state

    def keep_buffers(self, before: Arrays, after: Arrays, square_sum: jax.Array) -> Arrays:
        """Dispatch: the buffers after the step, those from before it where it was bad and such steps are skipped."""
        if "keep_buffers" not in self.programs:
            return after
        return self.programs["keep_buffers"](before, after, square_sum)

    def size(self, params: Arrays) -> jax.Array:
        """Dispatch: the sum of squares of the weights that train, where bad steps are skipped."""
        return self.programs["size"](self._trained(params))

    def _trained(self, params: Arrays) -> Arrays:
        return {path: params[path] for path in self.stage.trained}


def sum_of_squares(gradients: Arrays, dtype: jnp.dtype) -> jax.Array:
    """Return the squares of all elements added up in this dtype, a scalar; 0 without gradients."""
    squares = (jnp.sum(jnp.square(gradient.astype(dtype))) for gradient in gradients.values())
    return sum(squares, start=jnp.zeros((), dtype))
