"""What one process of several builds, holds and reads."""

import jax
import pytest

from hetjax import Trainer
from hetjax.generation.generator import Generator
from hetjax.meshes import Layout, Placement
from hetjax.models import Sampling
from tests.harness.count_waits import count_waits
from tests.harness.parity.problem import make_batch, make_graph, make_optimizer
from tests.harness.processes import run_processes

# Four devices in each process: the encoder in the first, and the language model's stages over the border.
LAYOUTS = {"vision": Layout(devices="0-1", data=2), "llm": Layout(devices="2-5", stage=2, data=2)}
STAGES = ({"vision", "llm.0"}, {"llm.1"})


def build_and_step():
    trainer = Trainer(make_graph(), Placement(LAYOUTS), optimizer=make_optimizer(), microbatches=2, max_grad_norm=1.0)
    batch, state = make_batch(), trainer.init()
    state, _ = trainer.step(state, batch)
    with pytest.MonkeyPatch.context() as patch, count_waits(patch) as waits:
        for _ in range(2):
            state, metrics = trainer.step(state, batch)
        found = list(waits)
    step = trainer.compiled
    return {
        # On CPU devices the host waits for programs of several processes, see hetjax/compilation/dispatch_order.py; it
        # never reads.
        "reads": [name for name in found if "block_until_ready" not in name],
        "state": set(state.stages),
        "programs": {name for name, program in step.programs.items() if program.programs},
        "updates": {name for name, update in step.updates.items() if update.programs["update"].is_compiled},
        "devices": {device.id for array in jax.live_arrays() for device in array.sharding.addressable_devices},
        "loss": float(metrics["loss"]),
        "answers": Generator(trainer, max_new_tokens=3, stop_token=0).generate(state, prompts(batch), [4] * 8).tolist(),
        "drawn": draw(trainer, state, batch),
        "early": Generator(trainer, max_new_tokens=3, stop_token=0, check_every=1)
        .generate(state, prompts(batch), [4] * 8)
        .tolist(),
    }


def draw(trainer, state, batch):
    generator = Generator(trainer, max_new_tokens=3, stop_token=0, sampling=Sampling(temperature=2.0, top_p=0.95))
    return generator.generate(state, prompts(batch), [4] * 8, seed=3).tolist()


def prompts(batch):
    ports = {"vision": ("images",), "llm": ("tokens", "image_positions")}
    return {module: {port: batch[module][port][:8] for port in named} for module, named in ports.items()}


@pytest.mark.timeout(300)
def test_a_process_compiles_holds_and_reads_what_its_own_devices_run():
    results = run_processes(2, build_and_step, devices=4, timeout=200, fresh=True)
    for result, stages in zip(results, STAGES, strict=True):
        assert result["reads"] == []
        assert result["state"] == result["programs"] == result["updates"] == stages
    assert results[0]["devices"].isdisjoint(results[1]["devices"])
    assert results[0]["loss"] == results[1]["loss"]
    assert results[0]["answers"] == results[1]["answers"] == results[0]["early"] == results[1]["early"]

    trainer = Trainer(make_graph(), Placement(LAYOUTS), optimizer=make_optimizer(), microbatches=2, max_grad_norm=1.0)
    batch, state = make_batch(), trainer.init()
    for _ in range(3):
        state, metrics = trainer.step(state, batch)
    assert results[0]["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-6)
    answers = Generator(trainer, max_new_tokens=3, stop_token=0).generate(state, prompts(batch), [4] * 8)
    assert results[0]["answers"] == answers.tolist()
    assert results[0]["drawn"] == results[1]["drawn"] == draw(trainer, state, batch) != answers.tolist()
