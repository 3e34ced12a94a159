"""The oracle: the same model, batch and optimizer on one device, as plain JAX without any mesh of ours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hetjax import ModuleGraph
from hetjax.stages.flat_state import flatten_module


def train_on_one_device(graph: ModuleGraph, batch, optimizer: optax.GradientTransformation, *, steps: int, dtype):
    """[(loss, gradients, weights after the step) for each step], as host arrays by module and path."""
    return [step[:3] for step in steps_on_one_device(graph, batch, optimizer, steps=steps, dtype=dtype)]


def steps_on_one_device(graph: ModuleGraph, batch, optimizer: optax.GradientTransformation, *, steps: int, dtype):
    """As `train_on_one_device`, with the buffers after each step: the whole batch is one microbatch."""
    device = jax.local_devices()[0]
    with jax.default_device(device):
        apart = {name: flatten_module(graph.build(name, 0)) for name in graph.modules}
        weights = {name: params for name, (_, params, _) in apart.items()}
        weights = jax.jit(lambda weights: jax.tree.map(lambda x: x.astype(dtype), weights))(weights)
        buffers = {name: buffers for name, (_, _, buffers) in apart.items()}
        arrays = jax.tree.map(jnp.asarray, batch)

        def loss_of(weights, buffers):
            outputs, after = {}, {}
            for name in graph.order:
                fed = {e.destination.split(".")[1]: outputs[e.source] for e in graph.inputs(name)}
                module = apart[name][0].assemble(weights[name], buffers[name])
                for port, value in module(**arrays.get(name, {}), **fed).items():
                    outputs[f"{name}.{port}"] = value
                after[name] = flatten_module(module)[2]
            return outputs[f"{graph.sink}.loss"] / jnp.sum(arrays[graph.sink]["loss_weights"]), after

        def end(name, weights, buffers):
            module = apart[name][0].assemble(weights, buffers)
            if hasattr(module, "end_of_step"):
                module.end_of_step()
            return flatten_module(module)[2]

        @jax.jit
        def step(weights, buffers, opt_state):
            (loss, buffers), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights, buffers)
            updates, opt_state = optimizer.update(gradients, opt_state, weights)
            buffers = {name: end(name, weights[name], own) for name, own in buffers.items()}
            return loss, gradients, optax.apply_updates(weights, updates), buffers, opt_state

        opt_state = jax.jit(optimizer.init)(weights)
        history = []
        for _ in range(steps):
            loss, gradients, weights, buffers, opt_state = step(weights, buffers, opt_state)
            history.append(jax.device_get((loss, gradients, weights, buffers)))
    return history


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference, relative to the largest entry of the reference."""
    scale = np.max(np.abs(reference))
    return float(np.max(np.abs(np.asarray(value) - reference)) / scale) if scale else float(np.max(np.abs(value)))
