"""Traces all programs of generation for batches of one shape, and lists what to compile."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from hetjax.boundary import Transport, TwoWayTransport
from hetjax.compilation.compiled_program import ArrayTree, Program
from hetjax.errors import BatchError, GraphError
from hetjax.generation.stage_programs import LENGTHS, TOKENS, Decode, Encode
from hetjax.graph import ModuleGraph
from hetjax.models.sampling import Sampling, is_stop
from hetjax.stages.batch import Batch, input_shapes
from hetjax.stages.flat_state import Shapes
from hetjax.stages.host_transfer import ToEveryProcess
from hetjax.stages.link_transport import link_transport
from hetjax.stages.links import Link
from hetjax.stages.stage import Stage
from hetjax.stages.windows import ONE_MICROBATCH


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodePrograms:
    """The parts of generation by name of a stage or a link, in the order of the data.

    Attributes:
        inputs: shapes of each stage's inputs that come from the batch.
        encoders: programs of the stages ahead of the language model.
        decoders: programs of the language model's stages.
        prefill_boundaries: carry the tensors of all links in the prefill.
        step_boundaries: carry the tensors of links inside the language model in a decode step.
        back: carries the chosen tokens from the last stage to the first.
        answers: carries the answers to every process.
        all_stopped: answers -> whether every sample has stopped, on the last stage's mesh; None in a process without
            a device of it.
        stopped_everywhere: carries that to every process.
    """

    inputs: Mapping[str, Shapes]
    encoders: Mapping[str, Encode]
    decoders: Mapping[str, Decode]
    prefill_boundaries: Mapping[str, TwoWayTransport]
    step_boundaries: Mapping[str, TwoWayTransport]
    back: Transport
    answers: ToEveryProcess
    all_stopped: Program | None
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
        """Return what remains to compile, by name."""
        tasks: dict[str, Callable[[], object]] = {}
        for name, encoder in self.encoders.items():
            if not encoder.stage.is_local:
                continue
            tasks[f"{name} encoding"] = encoder.programs["forward"].compile
        for name, decoder in self.decoders.items():
            if not decoder.stage.is_local:
                continue
            tasks[f"{name} prefill"] = decoder.programs["prefill"].compile
            tasks[f"{name} decode step"] = decoder.programs["step"].compile
        for what, transports in (("prompt", self.prefill_boundaries), ("step", self.step_boundaries)):
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


def generating_module(graph: ModuleGraph) -> str:
    """Return the language model: the module of a loss that can generate, else the one that ends the graph.

    Raises GraphError where several modules can generate.
    """
    able = [module for module in graph.losses if hasattr(graph.abstract(module), "decode")]
    if len(able) > 1:
        raise GraphError(
            f"modules {', '.join(able)} of the losses can all generate (decode); answers come from one of them, so "
            "generate with a graph that has the others left out"
        )
    return able[0] if able else graph.sink


def read_for_decoding(stages: Sequence[Stage], links: Sequence[Link], model: str) -> tuple[Link, ...]:
    """Return the links that the language model's answers depend on."""
    read = {stage.name for stage in stages if stage.module == model}
    for stage in reversed(stages):
        if any(link.source == stage.name and link.destination in read for link in links):
            read.add(stage.name)
    return tuple(link for link in links if link.destination in read)


def stages_for_decoding(
    graph: ModuleGraph, stages: Sequence[Stage], links: Sequence[Link], model: str
) -> tuple[Stage, ...]:
    """Return the stages that generation runs, as it runs them: those of the language model and what it reads.

    Those of the language model have no loss inputs, and the sequence in one piece, since a decode step has one token
    position. Those of encoders take all prompts at once. `links` are those of `read_for_decoding`. Raises GraphError
    when the language model cannot generate.
    """
    takes = _decode_inputs(graph, links, model)
    read = {name for link in links for name in (link.source, link.destination)}
    return tuple(
        dataclasses.replace(
            stage,
            layout=dataclasses.replace(stage.layout, context=1, sequence_parallel=False),
            inputs=tuple(port for port in stage.inputs if port in takes),
        )
        if stage.module == model
        else dataclasses.replace(stage, window=ONE_MICROBATCH)
        for stage in stages
        if stage.module == model or stage.name in read
    )


def _decode_inputs(graph: ModuleGraph, links: Sequence[Link], name: str) -> tuple[str, ...]:
    """Return the inputs that `decode` takes from the batch and from links."""
    model = graph.abstract(name)
    kind = type(model).__name__
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


def trace_decode_programs(
    stages: Sequence[Stage],
    links: Sequence[Link],
    sink: str,
    batch: Batch,
    *,
    cache_dims: Mapping[str, ArrayTree],
    new_tokens: int,
    stop_tokens: tuple[int, ...],
    sampling: Sampling,
    devices: Sequence[jax.Device],
) -> DecodePrograms:
    """Trace all programs for batches of these shapes.

    Args:
        sink: name of the language model.
        batch: shapes by module and input.
        cache_dims: dim names of the cache's arrays, for each stage of the language model.
        new_tokens, stop_tokens, sampling: as for `Decode`.
        devices: all devices of the trainer; every process that has one gets the answers.

    Raises BatchError and GraphError.
    """
    inputs = input_shapes(batch, stages, links, 1)
    own = [stage for stage in stages if stage.module == sink]
    size, longest = _prompt_shape(own[0], inputs)
    encoders, decoders = {}, {}
    by_name = {stage.name: stage for stage in stages}
    prefill_boundaries, step_boundaries = {}, {}
    made: dict[str, Shapes] = {}
    made_in_step: dict[str, Shapes] = {}
    for stage in stages:
        taken, passed = dict(inputs[stage.name]), {}
        for link in links:
            if link.destination != stage.name:
                continue
            source = by_name[link.source]
            boundary = link_transport(link, source, made[link.source], stage, gradient=False)
            prefill_boundaries[link.name] = boundary
            taken[link.destination_port] = boundary.arriving
            if link.source in made_in_step:
                boundary = link_transport(link, source, made_in_step[link.source], stage, gradient=False)
                step_boundaries[link.name] = boundary
                passed[link.destination_port] = boundary.arriving
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
    last, chosen, answer = own[-1], made_in_step[own[-1].name][TOKENS], decoder.carry.answer
    all_stopped = None
    if last.is_local:
        all_stopped = Program(
            f"{last.name} all stopped",
            lambda answer: jnp.all(is_stop(answer[:, -1], stop_tokens)),
            last.mesh,
            answer,
            out_shardings=last.replicated,
        ).trace()
    return DecodePrograms(
        inputs=inputs,
        encoders=encoders,
        decoders=decoders,
        prefill_boundaries=prefill_boundaries,
        step_boundaries=step_boundaries,
        back=Transport(chosen.sharding, next_token.sharding, chosen.shape, chosen.dtype),
        answers=ToEveryProcess(answer.sharding, answer.shape, answer.dtype, devices),
        all_stopped=all_stopped,
        stopped_everywhere=ToEveryProcess(last.replicated, (), jnp.bool_, devices),
    )


def _prompt_shape(first: Stage, inputs: Mapping[str, Shapes]) -> tuple[int, int]:
    """Return (samples, longest prompt)."""
    tokens = inputs[first.name].get(TOKENS)
    if tokens is None or len(tokens.shape) != 2:
        problem = "is missing" if tokens is None else f"has shape {tokens.shape}"
        raise BatchError(
            f"module '{first.module}': its input '{TOKENS}' {problem}; to generate, give batch['{first.module}']"
            f"['{TOKENS}'] of shape [batch, longest prompt]"
        )
    return tokens.shape
