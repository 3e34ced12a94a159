"""The programs of one stage that generates: an encoder's forward, and a decoder stage's prefill and decode step."""

# B batch · S longest prompt · R new tokens · V vocabulary

from __future__ import annotations

import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Int, UInt32

from hetjax.compilation.compiled_program import ArrayTree, Program
from hetjax.models.dims import Dims
from hetjax.models.mode import inference
from hetjax.models.sampling import Sampling, choose, is_stop, keys_of_samples
from hetjax.programs.whole_weights import WholeWeights
from hetjax.stages.flat_state import Arrays, Shapes
from hetjax.stages.placed_shapes import shardings_of
from hetjax.stages.stage import Stage

TOKENS = "tokens"
"""The input port of the first stage for token ids, and the output port of the last stage for chosen tokens."""

LENGTHS = "lengths"
"""The argument of `decode`, where a stage has it, for the token positions of each prompt that are no padding [B]; the
stage may return under this name how many are left."""


class Encode:
    """The forward program of a stage that infers, named by `what` it is for: of one ahead of the language model.

    Attributes:
        outputs: shape, dtype and sharding by output port.
        programs: "forward"; none of a stage that other processes run.
    """

    def __init__(self, stage: Stage, inputs: Shapes, *, what: str = "encoding"):
        def forward(params: Arrays, buffers: Arrays, inputs: Arrays) -> Arrays:
            # What the call changes in the buffers belongs to training and is dropped.
            with inference():
                return stage.call(params, buffers, inputs)[0]

        avals = (stage.compute_params, stage.buffers, inputs)
        self.stage = stage
        self.outputs = placed_ports(stage, jax.eval_shape(forward, *avals))
        self.programs: dict[str, Program] = {}
        if stage.is_local:
            shardings = shardings_of(self.outputs)
            forward = WholeWeights(stage, forward, *avals).before(forward)
            program = Program(f"{stage.name} {what}", forward, stage.mesh, *avals, out_shardings=shardings)
            self.programs["forward"] = program.trace()

    def forward(self, params: Arrays, buffers: Arrays, inputs: Arrays) -> Arrays:
        """Dispatch: outputs by port. `params` are in the compute dtype."""
        return self.programs["forward"](params, buffers, inputs)


class Carry(NamedTuple):
    """The arrays that a decoder stage carries on its mesh from decode step to decode step, each of which consumes them.

    Attributes:
        cache: the stage's cache, a pytree that its module defines.
        positions: position of the next token in each sequence.
        answer: in the last stage, the tokens made so far in the last columns, newest at the end; else None.
        keys: in the last stage, where tokens are drawn, a random key for each sample; else None.
    """

    cache: ArrayTree
    positions: Int[Array, "B 1"]
    answer: Int[Array, "B R"] | None
    keys: UInt32[Array, "B 2"] | None = None


class Decode:
    """Prefill and decode step of one stage of the language model.

    The prefill takes the whole prompts and makes the cache; a decode step takes one token position of each sample.
    Both return (outputs by port, carry); the outputs of the last stage are {"tokens": [B, 1]}, the next token as
    `sampling` chooses it.

    Args:
        stage: the stage.
        prompt: shapes of its inputs in the prefill, by port.
        longest: S.
        new_tokens: R.
        stop_tokens: tokens after which a sample has ended.
        sampling: how tokens are chosen.
        cache_dims: dim names of each array of the cache, in the cache's tree.

    Attributes:
        outputs, carry: shape, dtype and sharding of what the prefill returns.
        lengths: the same of the lengths of the prompts, int32 [B].
        seed: the same of the seed, a uint32 scalar, which the prefill takes where `draws`.
        draws: whether this stage draws tokens: it is the last one, and not the most likely is taken.
        programs: "prefill", and "step" after `trace_step`; none of a stage that other processes run.
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
        cache_dims: ArrayTree,
    ):
        self.stage = stage
        self.is_last = stage.index == stage.count - 1
        self.longest, self.new_tokens, self.stop_tokens, self.sampling = longest, new_tokens, stop_tokens, sampling
        batch = next(iter(prompt.values())).shape[0]
        self.lengths = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=self._sharding("batch", shape=(batch,)))
        self.draws = self.is_last and sampling.draws
        self.seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=stage.replicated)
        seeds = (self.seed,) if self.draws else ()
        avals = (stage.compute_params, stage.buffers, prompt, self.lengths, *seeds)
        outputs, carry = jax.eval_shape(self._prefill, *avals)
        self.outputs = placed_ports(stage, outputs)
        self.carry = self._placed_carry(carry, cache_dims)
        self.programs: dict[str, Program] = {}
        if stage.is_local:
            shardings = shardings_of((self.outputs, self.carry))
            prefill = WholeWeights(stage, self._prefill, *avals).before(self._prefill)
            program = Program(f"{stage.name} prefill", prefill, stage.mesh, *avals, out_shardings=shardings)
            self.programs["prefill"] = program.trace()

    def trace_step(self, passed: Shapes) -> Shapes:
        """Trace the decode step for inputs of one token position a sample; return shapes of its outputs by port."""
        stage = self.stage
        avals = (stage.compute_params, stage.buffers, passed, self.carry)
        outputs = placed_ports(stage, jax.eval_shape(self._step, *avals)[0])
        if stage.is_local:
            shardings = shardings_of((outputs, self.carry))
            name = f"{stage.name} decode step"
            step = WholeWeights(stage, self._step, *avals).before(self._step)
            program = Program(name, step, stage.mesh, *avals, donate=3, out_shardings=shardings)
            self.programs["step"] = program.trace()
        return outputs

    def prefill(
        self, params: Arrays, buffers: Arrays, inputs: Arrays, lengths: Int[Array, B], *seed: jax.Array
    ) -> tuple[Arrays, Carry]:
        """Dispatch: (outputs by port, carry), from whole prompts."""
        return self.programs["prefill"](params, buffers, inputs, lengths, *seed)

    def step(self, params: Arrays, buffers: Arrays, inputs: Arrays, carry: Carry) -> tuple[Arrays, Carry]:
        """Dispatch: (outputs by port, carry), from one token position a sample. Consumes `carry`."""
        return self.programs["step"](params, buffers, inputs, carry)

    def _prefill(
        self, params: Arrays, buffers: Arrays, inputs: Arrays, lengths: Int[Array, B], *seed: jax.Array
    ) -> tuple[Arrays, Carry]:
        stage, batch = self.stage, lengths.shape[0]
        module = stage.skeleton.assemble(params, buffers)
        positions = jnp.broadcast_to(jnp.arange(self.longest), (batch, self.longest))
        optional = {"last": lengths - 1} if self.is_last else {}
        if LENGTHS in inspect.signature(module.decode).parameters:
            optional[LENGTHS] = lengths
        with stage.in_force():
            cache = module.init_cache(batch, self.longest + self.new_tokens, self._dtype)
            outputs, cache = module.decode(cache, positions=positions, **inputs, **optional)
        outputs = dict(outputs)
        lengths = outputs.pop(LENGTHS, lengths)
        answer, keys = None, keys_of_samples(*seed, batch) if self.draws else None
        if self.is_last:
            new = self._choose(outputs, keys, lengths)
            answer = jnp.pad(new, ((0, 0), (self.new_tokens - 1, 0)))
            outputs = {TOKENS: new}
        return outputs, Carry(cache, lengths[:, None], answer, keys)

    def _step(self, params: Arrays, buffers: Arrays, inputs: Arrays, carry: Carry) -> tuple[Arrays, Carry]:
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

    def _choose(
        self, outputs: Arrays, keys: UInt32[Array, "B 2"] | None, positions: Int[Array, B]
    ) -> Int[Array, "B 1"]:
        with self.stage.in_force():
            return choose(outputs["logits"], self.sampling, keys, positions)[:, None]

    @property
    def _dtype(self) -> jnp.dtype:
        """The dtype of the cache: the one that the stage computes in."""
        dtypes = [aval.dtype for aval in self.stage.compute_params.values()]
        return jnp.result_type(*(dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)))

    def _placed_carry(self, carry: Carry, cache_dims: ArrayTree) -> Carry:
        def cache_part(aval: jax.ShapeDtypeStruct, dims: Dims) -> jax.ShapeDtypeStruct:
            return _placed(aval, self.stage.activation_sharding(dims, aval.shape, what="cache"))

        by_sample = self._sharding("batch", None, shape=carry.positions.shape)
        return Carry(
            cache=jax.tree.map(cache_part, carry.cache, cache_dims),
            positions=_placed(carry.positions, by_sample),
            answer=None if carry.answer is None else _placed(carry.answer, by_sample),
            keys=None if carry.keys is None else _placed(carry.keys, by_sample),
        )

    def _sharding(self, *dims: str | None, shape: tuple[int, ...]) -> NamedSharding:
        return self.stage.activation_sharding(dims, shape)


def placed_ports(stage: Stage, outputs: Shapes) -> Shapes:
    """Return output shapes with the sharding that the stage gives each port."""
    return {port: _placed(aval, stage.port_sharding(port, aval.shape)) for port, aval in outputs.items()}


def _placed(aval: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding)
