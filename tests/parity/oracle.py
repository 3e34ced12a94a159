"""The oracle: the same model, batch and optimizer on one device, as plain JAX without any mesh of ours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hetjax import ModuleGraph
from hetjax.weights import take_apart


def train_on_one_device(graph: ModuleGraph, batch, optimizer: optax.GradientTransformation, *, steps: int, dtype):
    """[(loss, gradients, weights after the step) for each step], as host arrays by module and path."""
    device = jax.local_devices()[0]
    with jax.default_device(device):
        apart = {name: take_apart(graph.build(name, 0)) for name in graph.modules}
        weights = jax.tree.map(lambda x: x.astype(dtype), {name: params for name, (_, params, _) in apart.items()})
        arrays = jax.tree.map(jnp.asarray, batch)

        def loss_of(weights):
            outputs = {}
            for name in graph.order:
                skeleton, _, buffers = apart[name]
                fed = {e.destination.split(".")[1]: outputs[e.source] for e in graph.inputs(name)}
                module = skeleton.assemble(weights[name], buffers)
                for port, value in module(**arrays.get(name, {}), **fed).items():
                    outputs[f"{name}.{port}"] = value
            return outputs[f"{graph.sink}.loss"] / jnp.sum(arrays[graph.sink]["loss_weights"])

        @jax.jit
        def step(weights, opt_state):
            loss, gradients = jax.value_and_grad(loss_of)(weights)
            updates, opt_state = optimizer.update(gradients, opt_state, weights)
            return loss, gradients, optax.apply_updates(weights, updates), opt_state

        opt_state = optimizer.init(weights)
        history = []
        for _ in range(steps):
            loss, gradients, weights, opt_state = step(weights, opt_state)
            history.append(jax.device_get((loss, gradients, weights)))
    return history


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference, relative to the largest entry of the reference."""
    scale = np.max(np.abs(reference))
    return float(np.max(np.abs(np.asarray(value) - reference)) / scale) if scale else float(np.max(np.abs(value)))
