"""Tiny audio encoders, and what tests ask of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hetjax.models import ParakeetConfig, ParakeetEncoder
from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.parakeet import parakeet_config, parakeet_entries
from tests.harness.models.arrays import with_arrays
from tests.harness.models.huggingface_models import with_tensors

TINY = ParakeetConfig(
    width=32, layers=2, heads=4, mlp_width=64, mel_bins=16, subsampling_channels=16, projector_width=48, output_width=24
)


def from_tensors(hf, tensors, *, output_width, dtype=None, **changes):
    """The encoder of a config.json and its tensors, with `changes` to our config."""
    config = dataclasses.replace(parakeet_config(hf, output_width=output_width), **changes)
    build = lambda: ParakeetEncoder(config, rngs=nnx.Rngs(0))  # noqa: E731
    return with_tensors(build, parakeet_entries(config), tensors, dtype)


@functools.cache
def _arrays(config):
    """Random numbers in place of zeros and ones, which a test could not see."""
    random = np.random.default_rng(5)
    module = nnx.jit(lambda: ParakeetEncoder(config, rngs=nnx.Rngs(0)))()
    made = {}
    for path, array in arrays_by_path(module).items():
        if jnp.issubdtype(array.dtype, jnp.integer):
            made[path] = np.asarray(array)
        else:
            made[path] = np.asarray(array) + random.uniform(0, 0.3, array.shape)
    return made


def build_parakeet(dtype=np.float32, **changes):
    """An encoder like `TINY`, with these changes."""
    config = dataclasses.replace(TINY, **changes)
    arrays = {
        path: jnp.asarray(array if np.issubdtype(array.dtype, np.integer) else array.astype(dtype))
        for path, array in _arrays(dataclasses.replace(config, batch_norm="eval")).items()
    }
    return with_arrays(nnx.eval_shape(lambda: ParakeetEncoder(config, rngs=nnx.Rngs(0))), arrays)


def sounds(lengths, samples, dtype=np.float32, seed=0):
    """{"waveforms", "lengths"} for clips of these lengths [B, C], and noise past their ends, not to be read."""
    lengths = np.asarray(lengths, np.int32)
    waveforms = np.random.default_rng(seed).normal(scale=0.1, size=(*lengths.shape, samples)).astype(dtype)
    return {"waveforms": waveforms, "lengths": lengths}


def value_and_gradients(module, inputs):
    """(output [clips, N, E], {path: gradient}, {path: buffer after the call}) of features [clips, F, M].

    The gradients are those of the sum of output times `inputs["cotangent"]`.
    """
    definition, params, rest = nnx.split(module, nnx.Param, ...)

    @jax.jit
    def run(params, rest, features, frames, cotangent):
        def objective(params):
            # Variables made in this trace, for the call may set them.
            model = nnx.merge(definition, params, jax.tree.map(lambda leaf: leaf, rest))
            output = model.encode(features[None], frames[None])[0]
            after = nnx.state(model, nnx.BatchStat)
            return jnp.sum(output * cotangent), (output, after)

        gradients, (output, after) = jax.grad(objective, has_aux=True)(params)
        return output, gradients, after

    output, gradients, after = run(params, rest, inputs["features"], inputs["frames"], inputs["cotangent"])
    return np.asarray(output), by_path(gradients), by_path(after)


def by_path(state):
    return {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}
