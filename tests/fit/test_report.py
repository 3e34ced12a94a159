"""The report from numbers that are made up: sums, what fits, culprits and ways out."""

import dataclasses
import json

import pytest

from hetjax.fit.advice import verdict
from hetjax.fit.held import Moment
from hetjax.fit.report import mesh_needs
from hetjax.schedule import StageGraph, build_schedule
from tests.harness.fit_reports import GIB, H100, need, report


def test_the_peak_is_the_sum_of_its_parts_and_the_reserve():
    mesh = need("residuals", 30)
    numbers = mesh.numbers()
    parts = ("persistent_bytes", "residual_bytes", "temporary_bytes")
    assert numbers["peak_bytes"] == sum(numbers[part] for part in parts) + mesh.reserve
    assert numbers["persistent_bytes"] == 10 * GIB and numbers["residual_bytes"] == 30 * GIB
    assert numbers["capacity_bytes"] == 80_000_000_000


def test_the_json_has_the_documented_form():
    numbers = json.loads(json.dumps(report(need("residuals", 1)).numbers()))
    assert set(numbers) == {"fits", "meshes", "programs"}
    keys = {"peak_bytes", "persistent_bytes", "residual_bytes", "temporary_bytes", "capacity_bytes", "host_bytes"}
    assert set(numbers["meshes"]["llm"]) == keys
    program = numbers["programs"]["llm backward"]
    assert set(program) == {"flops_done", "flops_needed", "temporary_bytes", "largest", "oversized", "collectives"}
    assert program["temporary_bytes"] == 7 and program["largest"][0]["layer"] == "layers/attention"


def test_a_run_fits_where_every_mesh_does_and_everything_compiled():
    small, large = need("residuals", 1), need("residuals", 70)
    assert report(small).fits and not report(small, large).fits
    assert not report(small, failed={"llm forward and backward": "no such kernel"}).fits
    reserve_alone = dataclasses.replace(small, capacity=small.group.peak.total)
    assert not report(reserve_alone).fits


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (
            "temporaries and new outputs",
            ["bf16[1,16,16384,16384]", "8.0 GiB", "layers/attention", "microbatches", "context"],
        ),
        ("residuals", ["remat: {llm: full}", "microbatches"]),
        ("optimizer state", ["fsdp"]),
        ("compute weights", ["tensor", "fsdp"]),
    ],
)
def test_what_does_not_fit_is_told_with_its_culprit_and_the_ways_out(part, words):
    text = "\n".join(verdict(report(need(part, 100))))
    for word in ["does not fit", "B0 of llm", f"100.0 GiB of it {part}", "113.5 GiB", "74.5", *words]:
        assert word in text, word


def test_other_programs_that_take_too_much_are_told_too():
    mesh = need("temporaries and new outputs", 100)
    held = {"master weights": 10 * GIB, "temporaries and new outputs": 70 * GIB}
    more = [Moment(stage="vision", action=f"F{place}", held=held) for place in range(3)]
    group = dataclasses.replace(mesh.group, moments=(*mesh.group.moments, *more))
    text = "\n".join(verdict(report(dataclasses.replace(mesh, group=group))))
    assert "needs 113.5 GiB" in text and "too much too: F0 of vision (83.5 GiB)\n" in text
    assert "too much too" not in "\n".join(verdict(report(need("optimizer state", 100))))


def test_what_fits_says_how_much_is_left_and_what_was_not_compiled():
    text = "\n".join(verdict(report(need("residuals", 20), stages=("vision", "llm"))))
    assert "fits: the fullest devices, those of llm, have 41.0 GiB to spare (55%)" in text
    assert "compiled: llm; of vision weights" in text


def test_meshes_that_share_devices_are_told_once():
    both = ("vision", "llm")
    meshes = [need("residuals", 90, name=name, stages=both) for name in both]
    assert sum("does not fit" in line for line in verdict(report(*meshes))) == 1


def test_encoders_that_wait_on_devices_that_the_language_model_overfills_are_a_way_out():
    way, both = "offload: [vision]", ("vision", "llm")
    short = need("residuals", 90, stages=both)
    assert way in "\n".join(verdict(report(short, stages=both)))
    # Not where the encoder itself needs the most, has devices of its own, or is in the memory of the host already.
    of_encoder = need("residuals", 90, stage="vision", stages=both)
    moments = tuple(dataclasses.replace(moment, host=GIB) for moment in short.group.moments)
    offloaded = dataclasses.replace(short, group=dataclasses.replace(short.group, moments=moments))
    for mesh in (of_encoder, need("residuals", 90), offloaded):
        assert "offload" not in "\n".join(verdict(report(mesh, stages=both)))


def test_the_memory_of_the_host_is_in_the_report_where_any_is_used():
    mesh = need("residuals", 1)
    moments = tuple(dataclasses.replace(moment, host=3 * GIB) for moment in mesh.group.moments)
    offloaded = dataclasses.replace(mesh, group=dataclasses.replace(mesh.group, moments=moments))
    assert offloaded.numbers()["host_bytes"] == 3 * GIB and mesh.numbers()["host_bytes"] == 0


def test_a_program_that_does_not_compile_is_told_with_the_reason():
    failed = {"audio forward and backward": "INTERNAL: no tile"}
    lines = verdict(report(need("residuals", 1), failed=failed))
    assert lines[0] == "audio forward and backward does not compile: INTERNAL: no tile"


def test_a_mesh_needs_what_its_fullest_devices_hold():
    schedule = build_schedule("gpipe", StageGraph.chain(("a", "b")), 1)
    low, high = (need("residuals", gib, stage="b").group for gib in (1, 2))
    groups = [
        dataclasses.replace(low, stages=("b",)),
        dataclasses.replace(high, stages=("a", "b")),
        dataclasses.replace(low, stages=("a",)),
    ]
    found = mesh_needs(schedule, groups, H100, ["b"])
    assert [mesh.name for mesh in found] == ["b"] and found[0].group is groups[1]
