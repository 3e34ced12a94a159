"""hetjax bench model: parameters, arithmetic and speed of each component of a model, on one device."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.progress import track

from hetjax.errors import ConfigError
from hetjax.execution.flops import count_flops
from hetjax.models.components import ComponentConfig, build_component
from hetjax.models.parallel.layout_in_force import NO_DEVICE, layout_in_force
from hetjax.models.remat import check_remat, remat_in_force
from hetjax.stages.flat_state import Arrays, flatten_module
from hetjax.tools.bench.model_inputs import inputs_of
from hetjax.tools.bench.step import share_of_peak
from hetjax.tools.model import components_of, count, parameter_tree
from hetjax.tools.outcome import Json, Outcome, busy, stderr
from hetjax.tools.tables import NumberTable


def bench_model(
    *,
    model: str = "nemotron_3_nano_omni_300m",
    batch: int = 1,
    tokens: int = 1024,
    clip_seconds: float = 30.0,
    dtype: str = "bfloat16",
    remat: str = "full",
    timed: int = 5,
) -> Outcome:
    """Time the forward and backward of each component of a model, alone on one device, on random data.

    Args:
        model: A model by name, the folder of a Hugging Face checkpoint, or the YAML file of a run.
        batch: Samples of a batch.
        tokens: Length of the language model's sequences, and tokens that a vision encoder makes of a sample.
        clip_seconds: Length of the clip that an audio encoder gets of a sample.
        dtype: Dtype of weights and activations, bfloat16 or float32.
        remat: What layers keep for the backward, as in a run: none, full or dots.
        timed: Passes that are timed, after one that compiles.
    """
    for name, value in (("batch", batch), ("tokens", tokens), ("timed", timed), ("clip_seconds", clip_seconds)):
        if value <= 0:
            raise ConfigError(f"{name} is {value}; give more than 0")
    if dtype not in ("bfloat16", "float32"):
        raise ConfigError(f"dtype is {dtype!r}; give bfloat16 or float32")
    check_remat(remat)
    components = components_of(model)
    device = jax.local_devices()[0]
    rows = {}
    for module, config in track(components.items(), "components", console=stderr(), disable=not stderr().is_terminal):
        inputs, made = inputs_of(config, batch=batch, tokens=tokens, clip_seconds=clip_seconds)
        rows[module] = _measure(config, inputs, made, jnp.dtype(dtype), remat, timed)
    numbers = {"model": model, "device_kind": device.device_kind, "dtype": dtype, "batch": batch, "components": rows}
    return Outcome(numbers=numbers, shown=(_table(numbers),))


def _measure(
    config: ComponentConfig, inputs: dict[str, np.ndarray], tokens: int, dtype: jnp.dtype, remat: str, timed: int
) -> dict[str, Json]:
    """Time one component; `tokens` are those that its inputs make, padding included."""
    skeleton, shapes, buffer_shapes = flatten_module(nnx.eval_shape(lambda: build_component(config, nnx.Rngs(0))))

    def loss(params: Arrays, buffers: Arrays, given: Arrays) -> jax.Array:
        outputs = skeleton.assemble(params, buffers)(**given)
        return sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in outputs.values() if _is_floating(x))

    given = jax.device_put({name: x.astype(dtype) if _is_floating(x) else x for name, x in inputs.items()})
    cast = functools.partial(jax.tree.map, lambda aval: jax.ShapeDtypeStruct(aval.shape, dtype))
    with layout_in_force(lambda x, dims: x, device=NO_DEVICE):
        forward_flops = count_flops(loss, cast(shapes), buffer_shapes, given)
    with remat_in_force(remat), busy("compiling"):
        step = jax.jit(jax.grad(loss)).lower(cast(shapes), buffer_shapes, given).compile()
    params, buffers = _weights(config, dtype)
    seconds = []
    for _ in range(timed + 1):
        start = time.perf_counter()
        jax.block_until_ready(step(params, buffers, given))
        seconds.append(time.perf_counter() - start)
    typical, flops = median(seconds[1:]), 3 * forward_flops
    return {
        "parameters": count(parameter_tree(config)),
        "tokens": tokens,
        "flops_per_token": flops / tokens,
        "seconds": typical,
        "tokens_per_second": tokens / typical,
        "tflops": flops / typical / 1e12,
        "share_of_peak": share_of_peak(flops / typical, jax.local_devices()[0].device_kind),
    }


def _weights(config: ComponentConfig, dtype: jnp.dtype) -> tuple[Arrays, Arrays]:
    def make() -> tuple[Arrays, Arrays]:
        _, params, buffers = flatten_module(build_component(config, nnx.Rngs(0)))
        return jax.tree.map(lambda x: x.astype(dtype), params), buffers

    on_cpu = jax.default_backend() == "cpu"
    return jax.jit(make, compiler_options={"xla_backend_optimization_level": 0} if on_cpu else None)()


def _is_floating(x: jax.Array | np.ndarray) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _table(numbers: Mapping[str, Json]) -> NumberTable:
    columns = [_column(figures) for figures in numbers["components"].values()]
    return NumberTable(
        title=f"{numbers['model']} on one {numbers['device_kind']}, {numbers['dtype']}",
        texts=("forward and backward",),
        numbers=tuple(numbers["components"]),
        rows=[(name, *(column[name] for column in columns)) for name in columns[0]],
    )


def _column(figures: Mapping[str, Json]) -> dict[str, str]:
    """Return the figures of one component as they are shown, by the names of the rows."""
    peak = figures["share_of_peak"]
    return {
        "parameters": f"{figures['parameters']:,}",
        "tokens": f"{figures['tokens']:,}",
        "FLOPs a token": f"{figures['flops_per_token']:.4g}",
        "time": f"{1000 * figures['seconds']:.1f} ms",
        "tokens/s": f"{figures['tokens_per_second']:,.0f}",
        "TFLOP/s": f"{figures['tflops']:.4g}",
        "share of bfloat16 peak": "unknown" if peak is None else f"{peak:.1%}",
    }
