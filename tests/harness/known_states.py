"""States whose every value is known without the code under test, and trainers on several placements."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import hetjax
from hetjax.checkpoint import Checkpoints
from hetjax.meshes import Layout, Placement
from hetjax.models import DecoderConfig, LanguageModel, VisionConfig, VisionEncoder
from hetjax.stages.flat_state import by_path
from hetjax.state.train_state import StageState

VISION = VisionConfig(
    image_size=8, patch_size=4, width=16, layers=2, heads=2, mlp_width=32, projector_width=32, output_width=24
)
DECODER = DecoderConfig(vocab_size=40, width=24, layers=4, heads=4, kv_heads=2, head_dim=6, mlp_width=48)

DISJOINT = {"vision": Layout(devices="0-3", data=4), "llm": Layout(devices="4-7", fsdp=2, tensor=2)}
COLOCATED_STAGES = {"vision": Layout(fsdp=4, stage=2), "llm": Layout(data=2, tensor=2, stage=2)}
ONE_DEVICE = {"vision": Layout(devices="0"), "llm": Layout(devices="0")}
REVERSED = {"vision": Layout(devices="7,3", stage=2), "llm": Layout(devices="6,5,1,0", stage=2, fsdp=2)}


@functools.cache
def graph_of(decoder, vision: bool = False) -> hetjax.ModuleGraph:
    """Its modules are traced for their shapes once."""
    modules = {"llm": lambda rngs: LanguageModel(decoder, rngs=rngs)}
    if not vision:
        return hetjax.ModuleGraph(modules)
    modules = {"vision": lambda rngs: VisionEncoder(VISION, rngs=rngs), **modules}
    return hetjax.ModuleGraph(modules, [hetjax.Edge("vision.tokens", "llm.image_tokens")])


def trainer_on(placement, *, decoder=DECODER, optimizer=None, **settings) -> hetjax.Trainer:
    graph = graph_of(decoder, vision=True)
    return hetjax.Trainer(graph, Placement(placement), optimizer=optimizer or optax.adamw(1e-2), **settings)


def llm_on(layout: Layout, decoder=DECODER, **settings) -> hetjax.Trainer:
    return hetjax.Trainer(graph_of(decoder), Placement({"llm": layout}), optimizer=optax.adamw(1e-2), **settings)


# ── states whose every value is known without the code under test ────────────────────────────────


def known_part(stage, kind: str, path: str, aval) -> np.ndarray:
    """What a stage holds of an array that is drawn for the whole module; the path alone says what is stacked."""
    stacked = stage.count > 1 and "layers/" in path
    layers = stage.layers or (aval.shape[:1] or (0,)) * stage.count
    shape = (sum(layers), *aval.shape[1:]) if stacked else aval.shape
    rng = np.random.default_rng(zlib.crc32(f"{stage.module} {kind} {path}".encode()))
    whole = (100 * rng.normal(size=shape)).astype(aval.dtype)
    return whole[sum(layers[: stage.index]) :][: aval.shape[0]] if stacked else whole


def placed(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array of which every process has all numbers and places those of its own devices, without a program."""
    shards = sharding.addressable_devices_indices_map(array.shape).items()
    return jax.make_array_from_single_device_arrays(
        array.shape, sharding, [jax.device_put(array[index], device) for device, index in shards]
    )


def known_state(trainer: hetjax.Trainer, step: int) -> hetjax.TrainState:
    """The stages that this process runs, each with its own shards."""

    def drawn(stage, kind, avals):
        parts = {path: known_part(stage, kind, path, aval) for path, aval in avals.items()}
        return {path: placed(parts[path], aval.sharding) for path, aval in avals.items()}

    stages = {}
    for stage in trainer.stages:
        if not stage.is_local:
            continue
        opt_state = None
        if stage.trains:
            tree = trainer.updates[stage.name].opt_state
            opt_state = jax.tree.unflatten(jax.tree.structure(tree), drawn(stage, "opt_state", by_path(tree)).values())
        stages[stage.name] = StageState(
            params=drawn(stage, "params", stage.params),
            buffers=drawn(stage, "buffers", stage.buffers),
            opt_state=opt_state,
        )
    return trainer.known(hetjax.TrainState(step=step, stages=stages))


def assert_known(trainer: hetjax.Trainer, state: hetjax.TrainState) -> None:
    """Every array has the bits, the dtype and the sharding that `known_state` gives it on this trainer."""
    expected = known_state(trainer, state.step)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for name, stage in expected.stages.items():
        found = by_path(vars(state.stages[name]))  # asdict would copy every array
        for path, array in by_path(vars(stage)).items():
            assert found[path].dtype == array.dtype, (name, path)
            assert found[path].sharding == array.sharding, (name, path)
            for shard, other in zip(found[path].addressable_shards, array.addressable_shards, strict=True):
                assert shard.index == other.index, (name, path)
                assert np.asarray(shard.data).tobytes() == np.asarray(other.data).tobytes(), (name, path)


def save(directory, trainer, *, step=1, extra=None) -> None:
    checkpoints = Checkpoints(directory, keep=2, trainer=trainer)
    checkpoints.save(known_state(trainer, step), extra or {})
    checkpoints.close()


def restore(directory, trainer):
    return Checkpoints(directory, keep=2, trainer=trainer).restore()


class Noisy(nnx.Module):
    """Holds a random key, a running mean and a count beside its weight."""

    def __init__(self, rngs: nnx.Rngs, size: int = 4):
        self.weight = nnx.Param(rngs.params.normal((size, size)))
        self.mean = nnx.BatchStat(jnp.asarray(0.25))
        self.dropout = nnx.Dropout(0.5, rngs=rngs.fork())

    def __call__(self, x):
        return {"loss": jnp.sum(self.dropout(x @ self.weight[...])) + self.mean[...]}


def noisy_on(devices: str, module=Noisy) -> hetjax.Trainer:
    layout = Layout(devices=devices, data=len(devices.split(",")))
    return hetjax.Trainer(
        hetjax.ModuleGraph({"noisy": module}), Placement({"noisy": layout}), optimizer=optax.adam(0.1)
    )
