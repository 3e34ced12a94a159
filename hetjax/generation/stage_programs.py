"""The programs of one stage that generates: an encoder's forward, and a decoder stage's prefill and step.

B batch · S longest prompt · R new tokens · V vocabulary
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt32

from hetjax.compilation.dispatch_order import in_order
from hetjax.models.dims import Dims
from hetjax.models.mode import inference
from hetjax.models.sampling import Sampling, choose, is_stop, keys_of_samples
from hetjax.stages.flat_state import Arrays
from hetjax.stages.stage import Shapes, Stage

TOKENS = "tokens"
"""The input port of the first stage that takes ids, and what the last stage hands back to it."""

LENGTHS = "lengths"
"""What a prefill tells every stage whose `decode` takes it, and what it then gets back: rows of each prompt."""


class Compiled:
    """A function traced for fixed shapes on a mesh; compiled by `compile`, or else by the first call."""

    def __init__(self, function: Callable[..., Any], *avals: Any, mesh: Mesh, **options: Any):
        self._mesh = mesh
        self._traced = jax.jit(function, **options).trace(*avals)
        self._program: Any = None

    def compile(self) -> None:
        """Compile; harmless to call twice."""
        if self._program is None:
            self._program = in_order(self._traced.lower().compile(), self._mesh)

    def __call__(self, *arguments: Any) -> Any:
        self.compile()
        return self._program(*arguments)


class Encode:
    """Forward program of a stage ahead of the language model; its `outputs` are shapes by port.

    Of a stage that other processes run only the shapes are known.
    """

    def __init__(self, stage: Stage, inputs: Shapes):
        def forward(params: Arrays, buffers: Arrays, inputs: Arrays) -> Arrays:
            # What the call changes in the buffers belongs to training and is dropped.
            with inference():
                return stage.call(params, buffers, inputs)[0]

        avals = (stage.compute_params, stage.buffers, inputs)
        self.stage = stage
        self.outputs = placed_ports(stage, jax.eval_shape(forward, *avals))
        if stage.is_local:
            self.forward = Compiled(forward, *avals, mesh=stage.mesh, out_shardings=_shardings(self.outputs))


class Carry(NamedTuple):
    """What a decoder stage keeps on its mesh from step to step; a step consumes it.

    `positions` is the row of the token that comes next. The last stage has `answer`, whose last columns
    are the tokens made so far, newest at the end, and where tokens are drawn, `keys`, one a sample; other
    stages have None.
    """

    cache: Any
    positions: Int[Array, "B 1"]
    answer: Int[Array, "B R"] | None
    keys: UInt32[Array, "B 2"] | None = None


class Decode:
    """Prefill and step programs of one stage of the language model.

    The prefill takes `prompt` and `lengths` and makes the cache; a step takes the ports of `prompt` that
    `passed` holds, one row a sample. Both return (outputs by port, carry); those of the last stage are
    {"tokens": [B, 1]}, the next token as `sampling` chooses it. Where it `draws`, the last stage's prefill takes a
    seed, too, an array of the shape `seed`.
    """

    def __init__(
        self,
        stage: Stage,
        prompt: Shapes,
        *,
        longest: int,
        new_tokens: int,
        stop_tokens: tuple[int, ...],
        sampling: Sampling,
        cache_dims: Any,
    ):
        self.stage = stage
        self.is_last = stage.index == stage.count - 1
        self.longest, self.new_tokens, self.stop_tokens, self.sampling = longest, new_tokens, stop_tokens, sampling
        batch = next(iter(prompt.values())).shape[0]
        self.lengths = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=self._rows("batch", shape=(batch,)))
        self.draws = self.is_last and sampling.draws
        self.seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=stage.replicated)
        seeds = (self.seed,) if self.draws else ()
        avals = (stage.compute_params, stage.buffers, prompt, self.lengths, *seeds)
        outputs, carry = jax.eval_shape(self._prefill, *avals)
        self.outputs = placed_ports(stage, outputs)
        self.carry = self._placed_carry(carry, cache_dims)
        if stage.is_local:
            self.prefill = Compiled(
                self._prefill, *avals, mesh=stage.mesh, out_shardings=_shardings((self.outputs, self.carry))
            )

    def trace_step(self, passed: Shapes) -> Shapes:
        """Trace the step for inputs of one row a sample: its outputs by port."""
        stage = self.stage
        avals = (stage.compute_params, stage.buffers, passed, self.carry)
        outputs = placed_ports(stage, jax.eval_shape(self._step, *avals)[0])
        if stage.is_local:
            self.step = Compiled(
                self._step, *avals, mesh=stage.mesh, donate_argnums=3, out_shardings=_shardings((outputs, self.carry))
            )
        return outputs

    def _prefill(self, params: Arrays, buffers: Arrays, inputs: Arrays, lengths: Int[Array, B], *seed: jax.Array):
        stage, batch = self.stage, lengths.shape[0]
        module = stage.skeleton.assemble(params, buffers)
        positions = jnp.broadcast_to(jnp.arange(self.longest), (batch, self.longest))
        told = {"last": lengths - 1} if self.is_last else {}
        if LENGTHS in inspect.signature(module.decode).parameters:
            told[LENGTHS] = lengths
        with stage.in_force():
            cache = module.init_cache(batch, self.longest + self.new_tokens, self._dtype)
            outputs, cache = module.decode(cache, positions=positions, **inputs, **told)
        outputs = dict(outputs)
        lengths = outputs.pop(LENGTHS, lengths)
        answer, keys = None, keys_of_samples(*seed, batch) if self.draws else None
        if self.is_last:
            new = self._choose(outputs, keys, lengths)
            answer = jnp.pad(new, ((0, 0), (self.new_tokens - 1, 0)))
            outputs = {TOKENS: new}
        return outputs, Carry(cache, lengths[:, None], answer, keys)

    def _step(self, params: Arrays, buffers: Arrays, inputs: Arrays, carry: Carry):
        stage = self.stage
        module = stage.skeleton.assemble(params, buffers)
        with stage.in_force():
            outputs, cache = module.decode(carry.cache, positions=carry.positions, **inputs)
        answer = carry.answer
        if self.is_last:
            previous = answer[:, -1:]
            chosen = self._choose(outputs, carry.keys, carry.positions[:, 0] + 1)
            new = jnp.where(is_stop(previous, self.stop_tokens), previous, chosen)
            answer = jnp.concatenate([answer[:, 1:], new], axis=1)
            outputs = {TOKENS: new}
        return dict(outputs), Carry(cache, carry.positions + 1, answer, carry.keys)

    def _choose(self, outputs: Arrays, keys: Any, positions: Int[Array, B]) -> Int[Array, "B 1"]:
        with self.stage.in_force():
            return choose(outputs["logits"], self.sampling, keys, positions)[:, None]

    @property
    def _dtype(self) -> Any:
        """Keys and values are kept in the dtype that the stage computes in."""
        dtypes = [aval.dtype for aval in self.stage.compute_params.values()]
        return jnp.result_type(*(dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)))

    def _placed_carry(self, carry: Carry, cache_dims: Any) -> Carry:
        def cache_part(aval: jax.ShapeDtypeStruct, dims: Dims) -> jax.ShapeDtypeStruct:
            return _placed(aval, self.stage.activation_sharding(dims, aval.shape, what="cache"))

        rows = self._rows("batch", None, shape=carry.positions.shape)
        return Carry(
            cache=jax.tree.map(cache_part, carry.cache, cache_dims),
            positions=_placed(carry.positions, rows),
            answer=None if carry.answer is None else _placed(carry.answer, rows),
            keys=None if carry.keys is None else _placed(carry.keys, rows),
        )

    def _rows(self, *dims: str | None, shape: tuple[int, ...]) -> jax.sharding.NamedSharding:
        return self.stage.activation_sharding(dims, shape)


def placed_ports(stage: Stage, outputs: Shapes) -> Shapes:
    """Output shapes with the sharding that the stage gives each port."""
    return {port: _placed(aval, stage.port_sharding(port, aval.shape)) for port, aval in outputs.items()}


def _placed(aval: jax.ShapeDtypeStruct, sharding: jax.sharding.NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding)


def _shardings(avals: Any) -> Any:
    return jax.tree.map(lambda aval: aval.sharding, avals)
