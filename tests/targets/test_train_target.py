"""`train.py --target`: a small run compiled for GPUs that are not there, in processes of its own."""

import json
import os
import subprocess
import sys

import pytest

from tests.harness.absent_gpus import needs_compiler
from tests.harness.paths import ROOT

pytestmark = [pytest.mark.target, needs_compiler]


def train(*arguments: str) -> subprocess.CompletedProcess:
    """Run train.py, on no data, where no GPU is needed."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "200"}
    command = [sys.executable, "train.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


DIGITS = ("--config", "configs/digits.yaml", "--data.train", "no/such/data.jsonl", "--data.eval", "null")
ONE_LAYER = ("--model.vision.layers", "1", "--model.llm.layers", "1")


def test_a_run_that_fits_reports_what_it_needs_and_reads_no_data(tmp_path):
    out, picture = tmp_path / "report.json", tmp_path / "memory.png"
    done = train(*DIGITS, *ONE_LAYER, "--target", "h100x8", "--json", str(out), "--picture", str(picture))
    assert done.returncode == 0, done.stderr
    assert "fits: the fullest devices" in done.stdout and "compiled: llm forward and backward" in done.stderr
    assert picture.stat().st_size > 0
    report = json.loads(out.read_text())
    assert report["fits"] and set(report["meshes"]) == {"vision", "llm"}
    for mesh in report["meshes"].values():
        parts = [mesh[f"{part}_bytes"] for part in ("persistent", "residual", "temporary")]
        assert min(parts) > 0 and mesh["peak_bytes"] > sum(parts)
        assert mesh["capacity_bytes"] == 80_000_000_000
    forward = report["programs"]["llm forward"]
    # What one device multiplies is what the module asks for, shared out, and the scores of attention behind each token,
    # which are few enough that plain operations compute them all.
    assert 1 <= forward["flops_done"] / forward["flops_needed"] <= 1.07
    assert forward["temporary_bytes"] > 0 and len(forward["largest"]) == 10
    assert {each["axes"] for each in forward["collectives"]} >= {"tensor"}


def test_a_run_that_does_not_fit_exits_with_two_and_names_culprit_and_ways_out():
    wide = ("--model.llm.width", "16384", "--model.vision.output_width", "16384", "--model.llm.mlp_width", "131072")
    layout = ("--placement.llm.data", "1", "--placement.llm.tensor", "1", "--placement.llm.devices", "7")
    done = train(*DIGITS, *ONE_LAYER, *wide, *layout, "--only", "llm", "--target", "h100x8", "--json", "-")
    assert done.returncode == 2, done.stderr
    report = json.loads(done.stdout)
    assert not report["fits"]
    assert "does not fit: a device of llm needs" in done.stderr and "ways out: " in done.stderr
    assert set(report["meshes"]) == {"llm"} and not any(name.startswith("vision ") for name in report["programs"])


def test_alike_stages_are_compiled_once_and_each_is_reported():
    layout = ("--placement.llm.stage", "4", "--placement.llm.data", "1", "--placement.llm.tensor", "1")
    layers = ("--model.vision.layers", "1", "--model.llm.layers", "4")
    done = train(*DIGITS, *layers, *layout, "--target", "h100x8")
    assert done.returncode == 0, done.stderr
    assert "llm.1 forward and 1 alike" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "h300x8"), ["h300x8", "h200"]),
        (("--target", "h100x4"), ["'llm'", "8 devices", "--target h100x8"]),
        (("--target", "h100x8", "--only", "audio"), ["--only audio", "vision, llm"]),
        (("--only", "llm"), ["--target"]),
    ],
)
def test_bad_input_ends_with_one_message_before_any_work(arguments, words):
    done = train(*DIGITS, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("error:") == 1 and all(word in done.stderr for word in words), done.stderr


def test_a_trainer_compiles_for_a_target_puts_nothing_on_a_device_and_refuses_to_run():
    script = """
import hetjax
devices = hetjax.target_devices("h100:2x8")
import jax
from hetjax.config.build import batch_shapes, build_trainer
from hetjax.config.run_config import load_config
layout = ["--placement.llm.devices", "8-9", "--placement.llm.data", "1"]
layers = ["--model.llm.layers", "1", "--model.vision.layers", "1"]
config, _ = load_config(["--config", "configs/digits.yaml", *layout, *layers])
trainer = build_trainer(config, devices=devices)
trainer.compile(batch_shapes(config.data, config.model))
assert trainer.compiled.programs["llm"].programs["backward"].is_compiled
boundary = trainer.compiled.boundaries["vision.tokens->llm.image_tokens"].ways[0].forward
assert boundary.way == "exchange", boundary.way  # vision and llm lie in two hosts
assert sum(array.nbytes for array in jax.live_arrays()) < 2**16
try:
    trainer.init()
except hetjax.HetjaxError as error:
    assert "only described" in str(error)
else:
    raise AssertionError("a state on devices that are not there")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["h100x8", "h200x8", "a100x8", "b200x8"])
def test_attention_and_products_compile_for_every_gpu(name):
    script = f"""
import jax, jax.numpy as jnp, numpy as np, hetjax
from hetjax.compilation.compiled_program import Program
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
devices = hetjax.target_devices({name!r})
assert devices is hetjax.target_devices({name!r})
mesh = Mesh(np.array(devices), ("tensor",))
q = jax.ShapeDtypeStruct((1, 256, 8, 64), jnp.bfloat16, sharding=NamedSharding(mesh, P(None, None, "tensor")))
def attend(q):
    return jax.nn.dot_product_attention(q, q, q, is_causal=True, implementation="cudnn")
text = Program("attend", attend, mesh, q).text
assert "cudnn" in text, text
x = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=NamedSharding(mesh, P(None, "tensor")))
assert Program("product", lambda x: x @ x.T, mesh, x).memory.temporary > 0
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
