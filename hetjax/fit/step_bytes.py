"""The bytes of a compiled step's stages and links, from their shapes and what the compiler says of their programs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping

import jax

from hetjax.boundary import Transport
from hetjax.compilation.compiled_program import Program
from hetjax.execution.step_programs import Step
from hetjax.fit.held import NOTHING, CallBytes, LinkBytes, StageBytes
from hetjax.schedule.actions import Part
from hetjax.stages.link_transport import LinkTransport
from hetjax.stages.placed_shapes import bytes_per_device
from hetjax.stages.stage import Stage


def stage_bytes(step: Step, compiled: Collection[str]) -> dict[str, StageBytes]:
    """Return what each stage holds on a device; of one that is not `compiled`, what lasts all step and the batch."""
    return {name: _stage_bytes(step, name, name in compiled) for name in step.stages}


def stage_programs(step: Step, name: str) -> dict[str, Program]:
    """Return the programs of a stage by their name in it: forward, backward, prepare, reduce, update, end_of_step."""
    parts = (step.programs[name], step.updates.get(name), step.ends.get(name))
    return {label: program for part in parts if part is not None for label, program in part.programs.items()}


def _stage_bytes(step: Step, name: str, compiled: bool) -> StageBytes:
    stage, program, update = step.stages[name], step.programs[name], step.updates.get(name)
    frozen = [aval for path, aval in stage.params.items() if path in stage.frozen]
    persistent = {
        "master weights": bytes_per_device(stage.trained.values()),
        "compute weights": bytes_per_device((*stage.cast_params.values(), *frozen)),
        "gradients": bytes_per_device(stage.gradients.values()),
        "optimizer state": bytes_per_device(jax.tree.leaves(update.opt_state)) if update else 0,
        "buffers": bytes_per_device(stage.buffers.values()),
    }
    batch, reduced = (bytes_per_device(shapes.values()) for shapes in (step.inputs[name], stage.trained))
    lasting = StageBytes(
        persistent=persistent,
        reduced=reduced,
        batch=batch,
        late_gradients=update is not None and update.late_gradients,
        copied=_copied(stage, persistent["optimizer state"]),
    )
    if not compiled:
        return lasting
    calls: dict[str, CallBytes] = {}
    for label, each in stage_programs(step, name).items():
        # Of a program in several parts, which run one after the other, the largest.
        label = label.partition(".")[0]
        calls[label] = max(calls.get(label, NOTHING), call_bytes(each), key=lambda call: call.total)
    return dataclasses.replace(
        lasting,
        residuals=bytes_per_device(jax.tree.leaves(program.backward_shapes[1])) if program.has_backward else 0,
        pending=bytes_per_device(program.pending_shapes) if "backward_input" in program.programs else 0,
        calls=calls,
    )


def _copied(stage: Stage, opt_state: int) -> dict[Part, dict[str, int]]:
    """Return what host copies of a stage move, as `hetjax.execution.host_copies` does."""
    apart = stage.cast_params if stage.trains else {}

    def weights(*, frozen: bool, is_apart: bool) -> int:
        found = {path for path in stage.params if (path in stage.frozen, path in apart) == (frozen, is_apart)}
        return bytes_per_device(stage.params[path] for path in found)

    return {
        Part.WEIGHTS: {
            "master weights": weights(frozen=False, is_apart=False),
            "compute weights": weights(frozen=True, is_apart=False) + bytes_per_device(apart.values()),
        },
        Part.OPTIMIZER: {
            "master weights": weights(frozen=False, is_apart=True),
            "compute weights": weights(frozen=True, is_apart=True),
            "optimizer state": opt_state,
        },
    }


def call_bytes(program: Program) -> CallBytes:
    """Return what a call of a compiled program takes beside its arguments."""
    memory = program.memory
    return CallBytes(memory.temporary, memory.outputs - memory.donated)


def link_bytes(step: Step) -> dict[str, LinkBytes]:
    """Return what the tensor of each link takes; moving it only where its transports are compiled."""
    found = {}
    for name, link in step.links.items():
        boundary = step.boundaries[name]
        blanks: Counter[int] = Counter()
        calls: dict[tuple[str, bool], CallBytes] = {}
        for backward, transport in boundary.transports:
            if transport.way is not None:
                start, end = ("destination", "source") if backward else ("source", "destination")
                for at, call in zip((start, end), _ends(transport), strict=True):
                    calls[at, backward] = max(calls.get((at, backward), NOTHING), call, key=lambda call: call.total)
                blanks.update(transport.blank_bytes)
        found[name] = LinkBytes(
            port=link.source_port,
            source=bytes_per_device([step.programs[link.source].outputs[link.source_port]]),
            destination=bytes_per_device([boundary.arriving]),
            blanks={
                end: max(blanks[device.id] for device in step.stages[stage].mesh.devices.flat)
                for end, stage in (("source", link.source), ("destination", link.destination))
            },
            pieces=boundary.each,
            cut=_largest(boundary, "cut"),
            join=_largest(boundary, "join"),
            shares=all(way.forward.way == "stay" for way in boundary.ways),
            calls=calls,
        )
    return found


def _largest(boundary: LinkTransport, kind: str) -> CallBytes:
    """Return what the largest program that cuts a window, or that joins its gradients, takes."""
    programs = boundary.cut.programs if boundary.cut is not None else {}
    calls = [call_bytes(each) for name, each in programs.items() if name.startswith(kind) and each.is_compiled]
    return max(calls, default=NOTHING, key=lambda call: call.total)


def _ends(transport: Transport) -> tuple[CallBytes, CallBytes]:
    """Return what a move takes where it begins and where it ends, beside the tensor as it leaves and as it arrives."""
    calls: Mapping[str, CallBytes] = {name: call_bytes(program) for name, program in transport.programs.items()}
    split, cross, join = (calls.get(name, NOTHING) for name in ("split", "cross", "join"))
    # Pieces arrive before they are joined.
    pieces = (cross.fresh or bytes_per_device([transport.arriving])) if "join" in calls else 0
    return (
        CallBytes(split.total + cross.temporary, 0),
        CallBytes(cross.temporary + join.temporary + pieces, 0),
    )
