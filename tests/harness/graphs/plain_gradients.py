"""Loss and gradients of a module graph as plain JAX on one device: no stage, no mesh, no microbatch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from hetjax import ModuleGraph, Trainer
from hetjax.stages.flat_state import flatten_module
from tests.harness.parity.oracle import relative_error


def plain_gradients(graph: ModuleGraph, batch, counts: dict[str, float], weights: dict[str, float]):
    """(loss, gradients by module and path) of the weighted sum of each loss over its own count."""
    apart = {name: flatten_module(graph.build(name, 0)) for name in graph.modules}
    params = {name: jax.tree.map(jnp.asarray, found) for name, (_, found, _) in apart.items()}
    inputs = {name: batch.get(name, {}) for name in graph.modules}

    def loss_of(params, inputs):
        outputs = {}
        for name in graph.order:
            fed = {e.destination.split(".")[1]: (outputs[e.source], e.gradient) for e in graph.inputs(name)}
            fed = {port: x if gradient else jax.lax.stop_gradient(x) for port, (x, gradient) in fed.items()}
            made = apart[name][0].assemble(params[name], apart[name][2])(**inputs[name], **fed)
            outputs |= {f"{name}.{port}": x for port, x in made.items()}
        return sum(weight * outputs[f"{name}.loss"] / counts[name] for name, weight in weights.items())

    with jax.default_device(jax.devices()[0]):
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        return jax.device_get(jax.jit(jax.value_and_grad(loss_of))(params, inputs))


def largest_error(trainer: Trainer, batch, expected) -> float:
    """The largest relative error of a trainer's loss and of any of its gradients."""
    loss, gradients = expected
    found_loss, found = trainer.loss_and_gradients(trainer.init(), batch)
    pairs = [(found_loss, loss)]
    for module, own in found.items():
        pairs += [(gradient, gradients[module][path]) for path, gradient in own.items()]
    return max(relative_error(np.asarray(value), reference) for value, reference in pairs)
