"""Continues prompts token by token, with every module on its own meshes, as training left them."""

# B batch · S longest prompt · R new tokens

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Int

from hetjax.boundary import TwoWayTransport
from hetjax.compilation.compile_all import compile_all
from hetjax.errors import BatchError, ConfigError
from hetjax.generation.decode_programs import (
    DecodePrograms,
    generating_module,
    read_for_decoding,
    stages_for_decoding,
    trace_decode_programs,
)
from hetjax.generation.padding import Signature, padded_batch, padded_shapes, repeat_last, signature_of
from hetjax.generation.stage_programs import TOKENS, Carry
from hetjax.generation.stage_weights import WeightCasts, Weights
from hetjax.models.sampling import GREEDY, Sampling
from hetjax.stages.batch import Batch, StageMicrobatch, place_inputs
from hetjax.stages.cut import cut_module
from hetjax.stages.flat_state import Arrays
from hetjax.stages.host_transfer import to_devices
from hetjax.state.train_state import TrainState
from hetjax.trainer import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """Generated tokens, still on the devices.

    Attributes:
        ids: int32, with the answers in the last `made` columns of the first `count` rows.
        made: tokens of each sample; fewer than were asked for only where every sample has ended with a stop token.
        count: samples without padding.
    """

    ids: jax.Array
    made: int
    count: int

    def read(self) -> Int[np.ndarray, "B R"]:
        """Return the tokens on the host; waits for them."""
        ids = np.asarray(self.ids)[: self.count]
        rest = ids.shape[1] - self.made
        return np.pad(ids[:, rest:], ((0, 0), (0, rest)), mode="edge")


class Generator:
    """Continues prompts token by token, on the placement and with the weights of a trainer.

    Encoders run their stages in order; their tokens cross to the language model, the module of a
    loss that can generate. That runs a prefill and R - 1 steps, with a cache for every stage on the stage's mesh; the
    token chosen on the last stage's mesh crosses back to the first. Nothing is read on the host before
    the end. The language model's sequence is not split over the context axis, since a decode step has one position.

    Beside what `ModuleGraph` asks for, the language model offers, as `models.LanguageModel` does:
        init_cache(batch, length, dtype): an empty cache for the layers of its stage;
        cache_dims(): the dim names of each array of the cache, in the cache's tree;
        decode(cache, *, positions, tokens, ...): runs token positions against the cache; returns (outputs, cache).
            The first stage takes ids as `tokens`; the last also takes `last` and returns {"logits": [B, V]}.
            With a parameter `lengths`, each stage gets in a prefill how many positions of each prompt are no padding,
            and may return, as "lengths", how many are left where it takes some out.

    Args:
        trainer: its graph, stages and compute dtype are used.
        max_new_tokens: R, at least 1.
        stop_token: the token, or several, after which a sample has ended: it emits nothing else.
        sampling: how tokens are chosen. Draws are those of a seed, whatever the placement.
        check_every: every so many tokens, wait for one boolean from the devices and stop early when all
            samples have stopped; None never waits.

    Raises GraphError when the last module cannot generate, ConfigError for a number below 1.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        max_new_tokens: int,
        stop_token: int | Sequence[int],
        sampling: Sampling = GREEDY,
        check_every: int | None = None,
    ):
        for name, number in (("max_new_tokens", max_new_tokens), ("check_every", check_every)):
            if number is not None and number < 1:
                raise ConfigError(f"{name} is {number}; give 1 or more")
        self.max_new_tokens, self.check_every, self.sampling = max_new_tokens, check_every, sampling
        self.stop_tokens = tuple(int(token) for token in np.atleast_1d(np.asarray(stop_token, np.int32)))
        self.sink = generating_module(trainer.graph)
        self.links = read_for_decoding(trainer.stages, trainer.links, self.sink)
        self._devices = trainer.devices
        self.stages = stages_for_decoding(trainer.graph, trainer.stages, self.links, self.sink)
        model = trainer.graph.abstract(self.sink)
        self._cache_dims = {
            stage.name: cut_module(model, stage.module, stage.index, stage.count, stage.layers).cache_dims()
            for stage in self.stages
            if stage.module == self.sink
        }
        self._degree = math.lcm(*(stage.layout.batch_degree for stage in self.stages))
        self._casts = WeightCasts(self.stages, "generation")
        self._programs: dict[Signature, DecodePrograms] = {}

    def generate(
        self, state: TrainState, batch: Batch, lengths: Int[np.ndarray, B], seed: int = 0
    ) -> Int[np.ndarray, "B R"]:
        """Return the new tokens of each prompt, as host int32; after its first stop token a row only repeats that.

        `batch` is {module: {input: array with the batch dim leading}}, without labels. The language model's
        "tokens" [B, S] are padded at the end of each row, and `lengths` says how many of a row are prompt.
        B need not divide by any degree. Compiles at the first batch of each shape. `state` stays valid. What is
        drawn depends on `seed`, the row and the position of the token.

        Raises BatchError for a missing or unknown input, or a length outside 1..S, ConfigError for a seed outside
        0..2**32-1.
        """
        return self.dispatch(self.prepare(state), batch, lengths, seed).read()

    def prepare(self, state: TrainState) -> Weights:
        """Return the weights as programs take them, cast once; valid until a training step consumes `state`."""
        return self._casts(state)

    def trace(self, batch: Batch) -> dict[str, Callable[[], object]]:
        """Trace all programs for batches of these shapes, and list what remains to compile, by name.

        `batch` is {module: {input: array or jax.ShapeDtypeStruct}}.
        """
        return {**self._casts.tasks(), **self._programs_for(batch).tasks()}

    def compile(self, batch: Batch, *, progress: bool = False) -> None:
        """Compile all programs for batches of these shapes, as `trace` takes them."""
        compile_all(self.trace(batch), progress=progress)

    def dispatch(self, weights: Weights, batch: Batch, lengths: Int[np.ndarray, B], seed: int = 0) -> Answers:
        """Start `generate` with weights from `prepare`, without waiting for its end."""
        if not 0 <= seed < 2**32:
            raise ConfigError(f"seed is {seed}; give one from 0 to 2**32 - 1")
        if signature_of(padded_shapes(batch, self._degree)) not in self._programs:
            self.compile(batch)
        programs = self._programs_for(batch)
        count = len(lengths)
        lengths = self._check_lengths(np.asarray(lengths, np.int32), np.shape(batch[self.sink][TOKENS]))
        padded = padded_batch(batch, self._degree)
        arrived = place_inputs(padded, programs.inputs, self.stages, 1)
        token, carries = self._prefill(programs, weights, arrived, repeat_last(lengths, self._degree), seed)
        made = 1
        while made < self.max_new_tokens and not self._may_stop(programs, carries, made):
            token = self._step(programs, weights, programs.back(token) if programs.back.is_local else None, carries)
            made += 1
        ids = programs.answers(carries[programs.last].answer if programs.last in carries else None)
        return Answers(ids=ids, made=made, count=count)

    # ── running ──────────────────────────────────────────────────────────────────────────────────

    def _prefill(
        self,
        programs: DecodePrograms,
        weights: Weights,
        arrived: Mapping[StageMicrobatch, Arrays],
        lengths: Int[np.ndarray, B],
        seed: int,
    ) -> tuple[jax.Array | None, dict[str, Carry]]:
        """Run all stages on the prompts; return (first tokens, carry of each stage of the language model)."""
        outputs: dict[str, Arrays] = {}
        carries: dict[str, Carry] = {}
        for stage in self.stages:
            name = stage.name
            crossed = self._cross(programs.prefill_boundaries, name, outputs)
            if not stage.is_local:
                continue
            inputs = {**arrived[StageMicrobatch(name, 0)], **crossed}
            if name in programs.encoders:
                outputs[name] = programs.encoders[name].forward(*weights[name], inputs)
            else:
                decoder = programs.decoders[name]
                placed = to_devices(lengths, decoder.lengths.sharding)
                seeds = [to_devices(np.uint32(seed), decoder.seed.sharding)] if decoder.draws else []
                outputs[name], carries[name] = decoder.prefill(*weights[name], inputs, placed, *seeds)
        return _tokens(outputs, programs.last), carries

    def _step(
        self, programs: DecodePrograms, weights: Weights, token: jax.Array | None, carries: dict[str, Carry]
    ) -> jax.Array | None:
        """Run the language model on one token a sample; return the next tokens. Replaces the carries."""
        outputs: dict[str, Arrays] = {}
        for name, decoder in programs.decoders.items():
            inputs = self._cross(programs.step_boundaries, name, outputs)
            if not decoder.stage.is_local:
                continue
            if name == programs.first:
                inputs[TOKENS] = token
            outputs[name], carries[name] = decoder.step(*weights[name], inputs, carries[name])
        return _tokens(outputs, programs.last)

    def _cross(self, boundaries: Mapping[str, TwoWayTransport], stage: str, outputs: Mapping[str, Arrays]) -> Arrays:
        """Carry the tensors of a stage's incoming links; this process may run one end of a link, or both."""
        arrived = {}
        for link in self.links:
            if link.destination == stage and link.name in boundaries and boundaries[link.name].is_local:
                given = outputs[link.source][link.source_port] if link.source in outputs else None
                arrived[link.destination_port] = boundaries[link.name].forward(given)
        return arrived

    def _may_stop(self, programs: DecodePrograms, carries: Mapping[str, Carry], made: int) -> bool:
        if self.check_every is None or made % self.check_every:
            return False
        stopped = programs.all_stopped(carries[programs.last].answer) if programs.last in carries else None
        return bool(programs.stopped_everywhere(stopped))

    # ── shapes ───────────────────────────────────────────────────────────────────────────────────

    def _programs_for(self, batch: Batch) -> DecodePrograms:
        shapes = padded_shapes(batch, self._degree)
        key = signature_of(shapes)
        if key not in self._programs:
            self._programs[key] = trace_decode_programs(
                self.stages,
                self.links,
                self.sink,
                shapes,
                cache_dims=self._cache_dims,
                new_tokens=self.max_new_tokens,
                stop_tokens=self.stop_tokens,
                sampling=self.sampling,
                devices=self._devices,
            )
        return self._programs[key]

    def _check_lengths(self, lengths: Int[np.ndarray, B], shape: tuple[int, int]) -> Int[np.ndarray, B]:
        count, longest = shape
        if lengths.shape != (count,):
            raise BatchError(f"lengths have shape {lengths.shape}; give one for each of the {count} prompts")
        if lengths.min() < 1 or lengths.max() > longest:
            raise BatchError(
                f"lengths are {lengths.min()} to {lengths.max()}, but a row of tokens has {longest}; "
                f"give lengths from 1 to {longest}"
            )
        return lengths


def _tokens(outputs: Mapping[str, Arrays], last: str) -> jax.Array | None:
    return outputs[last][TOKENS] if last in outputs else None
