"""Compare a step that trains low-rank maps with a full one, in time and state, on one device.

python scripts/lora_step.py WIDTH LAYERS
"""

import sys
import time

import jax
import numpy as np
import optax

from hetjax import ModuleGraph, Trainer
from hetjax.meshes import Layout, Placement
from hetjax.models import DecoderConfig, LanguageModel, LoraConfig, with_lora

ROWS, LENGTH, VOCABULARY, ROUNDS = 4, 256, 2048, 4


def main() -> None:
    """Print medians of alternating steps: seconds, seconds of all cores, bytes of weights and optimizer state."""
    width, layers = map(int, sys.argv[1:])
    sizes = DecoderConfig(
        vocab_size=VOCABULARY, width=width, layers=layers, heads=width // 64, kv_heads=width // 128, head_dim=64,
        mlp_width=3 * width,
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
    batch = {"llm": {"tokens": tokens, "labels": tokens, "loss_weights": np.ones((ROWS, LENGTH), np.float32)}}
    build = lambda rngs: LanguageModel(sizes, rngs=rngs)  # noqa: E731
    builds = {
        "full": build,
        "all maps": with_lora(build, LoraConfig(rank=8)),
        "query and value": with_lora(build, LoraConfig(rank=8, layers=["query", "value"])),
    }
    trainers, states, held = {}, {}, {}
    for name, each in builds.items():
        graph, placement = ModuleGraph({"llm": each}), Placement({"llm": Layout(devices="0")})
        trainers[name] = Trainer(graph, placement, optimizer=optax.adamw(1e-3))
        state = trainers[name].init()
        arrays = [(stage.params, stage.opt_state) for stage in state.stages.values()]
        held[name] = sum(array.nbytes for array in jax.tree.leaves(arrays))
        states[name] = jax.block_until_ready(trainers[name].step(state, batch)[0])
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in builds}
    for name in list(builds) * ROUNDS:
        wall, cores = time.perf_counter(), time.process_time()
        states[name] = jax.block_until_ready(trainers[name].step(states[name], batch)[0])
        seconds[name].append((time.perf_counter() - wall, time.process_time() - cores))
    whole = np.median(seconds["full"], axis=0)
    for name, measured in seconds.items():
        wall, cores = np.median(measured, axis=0)
        shares = (
            f"{wall / whole[0]:.2f} and {cores / whole[1]:.2f} of full; {held[name] / held['full']:.2f} of its state"
        )
        print(f"{name}: {wall:.2f} s, {cores:.2f} s of all cores: {shares}")


main()
