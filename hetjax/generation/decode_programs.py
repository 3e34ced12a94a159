"""Everything compiled that generation dispatches for batches of one shape."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hetjax.boundary import Transport
from hetjax.errors import BatchError, GraphError
from hetjax.generation.stage_programs import LENGTHS, TOKENS, Compiled, Decode, Encode
from hetjax.graph import ModuleGraph
from hetjax.models.sampling import Sampling, is_stop
from hetjax.stages.batch import Batch, input_shapes
from hetjax.stages.host_transfer import ToEveryProcess
from hetjax.stages.links import Link
from hetjax.stages.stage import Shapes, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodePlan:
    """The parts of generation, keyed by stage and link name, in the order of the data.

    Attributes:
        inputs: what each stage takes of the batch.
        encoders, decoders: programs of the stages ahead of the language model, and of its own.
        prompt: carries what the links hold in the prefill.
        passing: carries what links inside the language model hold in a step.
        back: carries the chosen tokens from the last stage to the first.
        answers: carries the answers to every process.
        all_stopped: answers -> whether every sample has stopped, on the last stage's mesh.
        stopped_everywhere: carries that to every process.
    """

    inputs: Mapping[str, Shapes]
    encoders: Mapping[str, Encode]
    decoders: Mapping[str, Decode]
    prompt: Mapping[str, Transport]
    passing: Mapping[str, Transport]
    back: Transport
    answers: ToEveryProcess
    all_stopped: Compiled | None
    stopped_everywhere: ToEveryProcess

    @property
    def first(self) -> str:
        """The language model's first stage."""
        return next(iter(self.decoders))

    @property
    def last(self) -> str:
        """The language model's last stage."""
        return list(self.decoders)[-1]

    def tasks(self) -> dict[str, Callable[[], object]]:
        """What remains to compile, by name."""
        tasks: dict[str, Callable[[], object]] = {}
        for name, encoder in self.encoders.items():
            if not encoder.stage.is_local:
                continue
            tasks[f"{name} encoding"] = encoder.forward.compile
        for name, decoder in self.decoders.items():
            if not decoder.stage.is_local:
                continue
            tasks[f"{name} prefill"] = decoder.prefill.compile
            tasks[f"{name} decoding step"] = decoder.step.compile
        for what, transports in (("prompt", self.prompt), ("step", self.passing)):
            for name, transport in transports.items():
                if transport.is_local:
                    tasks[f"{name} {what} boundary"] = transport.compile
        if self.back.is_local:
            tasks["next token boundary"] = self.back.compile
        tasks["answers, everywhere"] = self.answers.compile
        if self.all_stopped is not None:
            tasks["all samples stopped"] = self.all_stopped.compile
        tasks["all samples stopped, everywhere"] = self.stopped_everywhere.compile
        return tasks


def stages_for_decoding(graph: ModuleGraph, stages: Sequence[Stage], links: Sequence[Link]) -> tuple[Stage, ...]:
    """The stages as generation runs them: those of the language model without loss inputs, and with the sequence
    in one piece, since a step has one row. Raises GraphError when the language model cannot generate.
    """
    takes = _decode_inputs(graph, links)
    return tuple(
        dataclasses.replace(
            stage,
            layout=dataclasses.replace(stage.layout, context=1, sequence_parallel=False),
            inputs=tuple(port for port in stage.inputs if port in takes),
        )
        if stage.module == graph.sink
        else stage
        for stage in stages
    )


def _decode_inputs(graph: ModuleGraph, links: Sequence[Link]) -> tuple[str, ...]:
    """The inputs that `decode` takes from the batch and from links."""
    model = graph.abstract(graph.sink)
    name, kind = graph.sink, type(model).__name__
    lacking = [method for method in ("init_cache", "cache_dims", "decode") if not hasattr(model, method)]
    if lacking:
        raise GraphError(
            f"module '{name}' ends the graph, but {kind} cannot generate: it has no {', '.join(lacking)}; "
            "add what is missing as models.LanguageModel has it"
        )
    parameters = inspect.signature(type(model).decode).parameters
    takes = tuple(port for port in parameters if port not in ("self", "cache", "positions", LENGTHS, "last"))
    fed = [link.destination_port for link in links if link.destination.split(".")[0] == name]
    for port in (TOKENS, *fed):
        if port not in takes:
            raise GraphError(
                f"module '{name}' cannot generate: {kind}.decode takes no input '{port}', but "
                f"{', '.join(takes)}; add it"
            )
    return takes


def trace_decode_plan(
    stages: Sequence[Stage],
    links: Sequence[Link],
    sink: str,
    batch: Batch,
    *,
    cache_dims: Mapping[str, Any],
    new_tokens: int,
    stop_tokens: tuple[int, ...],
    sampling: Sampling,
    devices: Sequence[jax.Device],
) -> DecodePlan:
    """Trace all programs for batches of these shapes; `cache_dims` are those of each stage of the language model.

    Raises BatchError and GraphError.
    """
    inputs = input_shapes(batch, stages, links, 1)
    own = [stage for stage in stages if stage.module == sink]
    size, longest = _prompt_shape(own[0], inputs)
    encoders, decoders = {}, {}
    prompt, passing = {}, {}
    made: dict[str, Shapes] = {}
    made_in_step: dict[str, Shapes] = {}
    for stage in stages:
        taken, passed = dict(inputs[stage.name]), {}
        for link in links:
            if link.destination != stage.name:
                continue
            prompt[link.name] = _crossing(link, made[link.source], stage)
            taken[link.destination_port] = _arriving(prompt[link.name])
            if link.source in made_in_step:
                passing[link.name] = _crossing(link, made_in_step[link.source], stage)
                passed[link.destination_port] = _arriving(passing[link.name])
        if stage.module != sink:
            encoders[stage.name] = Encode(stage, taken)
            made[stage.name] = encoders[stage.name].outputs
            continue
        if stage is own[0]:
            passed[TOKENS] = jax.ShapeDtypeStruct((size, 1), jnp.int32, sharding=stage.port_sharding(TOKENS, (size, 1)))
            next_token = passed[TOKENS]
        decoder = Decode(
            stage,
            taken,
            longest=longest,
            new_tokens=new_tokens,
            stop_tokens=stop_tokens,
            sampling=sampling,
            cache_dims=cache_dims[stage.name],
        )
        decoders[stage.name] = decoder
        made[stage.name], made_in_step[stage.name] = decoder.outputs, decoder.trace_step(passed)
    chosen, answer, home = made_in_step[own[-1].name][TOKENS], decoder.carry.answer, own[-1].replicated
    all_stopped = None
    if own[-1].is_local:
        all_stopped = Compiled(
            lambda answer: jnp.all(is_stop(answer[:, -1], stop_tokens)), answer, mesh=home.mesh, out_shardings=home
        )
    return DecodePlan(
        inputs=inputs,
        encoders=encoders,
        decoders=decoders,
        prompt=prompt,
        passing=passing,
        back=Transport(chosen.sharding, next_token.sharding, chosen.shape, chosen.dtype),
        answers=ToEveryProcess(answer.sharding, answer.shape, answer.dtype, devices),
        all_stopped=all_stopped,
        stopped_everywhere=ToEveryProcess(home, (), jnp.bool_, devices),
    )


def _prompt_shape(first: Stage, inputs: Mapping[str, Shapes]) -> tuple[int, int]:
    """(samples, longest prompt)."""
    tokens = inputs[first.name].get(TOKENS)
    if tokens is None or len(tokens.shape) != 2:
        told = "is missing" if tokens is None else f"has shape {tokens.shape}"
        raise BatchError(
            f"module '{first.module}': its input '{TOKENS}' {told}; to generate, give batch['{first.module}']"
            f"['{TOKENS}'] of shape [batch, longest prompt]"
        )
    return tokens.shape


def _crossing(link: Link, made: Shapes, taker: Stage) -> Transport:
    if link.source_port not in made:
        raise GraphError(
            f"edge {link.name}: stage '{link.source}' has no output '{link.source_port}'; its outputs are "
            f"{', '.join(made)}"
        )
    given = made[link.source_port]
    there = taker.port_sharding(link.destination_port, given.shape)
    return Transport(given.sharding, there, given.shape, given.dtype)


def _arriving(transport: Transport) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(transport.shape, transport.dtype, sharding=transport.destination)
