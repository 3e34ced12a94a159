"""Loss and gradients of a module graph as plain JAX on one device: no stage, no mesh, no microbatch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hetjax import Mean, ModuleGraph, Sum, Trainer
from hetjax.stages.flat_state import flatten_module
from tests.harness.parity.oracle import relative_error


def plain_gradients(graph: ModuleGraph, batch, counts: dict[str, float], weights: dict[str, float]):
    """(loss, gradients by module and path) of the weighted sum of each loss over its own count."""

    def loss_of(params, inputs):
        outputs = _call(graph, params, inputs)
        return sum(weight * outputs[f"{name}.loss"] / counts[name] for name, weight in weights.items())

    with jax.default_device(jax.devices()[0]):
        return jax.device_get(jax.jit(jax.value_and_grad(loss_of))(_params(graph), _inputs(graph, batch)))


def plain_metrics(graph: ModuleGraph, batch, counts: dict[str, float]) -> dict[str, np.ndarray]:
    """Each metric that a module returns for the whole batch, and the mean of each loss, as "module/name"."""
    with jax.default_device(jax.devices()[0]):
        outputs = jax.device_get(jax.jit(functools.partial(_call, graph))(_params(graph), _inputs(graph, batch)))
    found = {f"{name}/loss": outputs[f"{name}.loss"] / count for name, count in counts.items()}
    for port, value in outputs.items():
        if isinstance(value, Sum | Mean):
            found[port.replace(".", "/")] = value.total / value.count if isinstance(value, Mean) else value.total
    return found


def _params(graph: ModuleGraph):
    params = {name: flatten_module(graph.build(name, 0))[1] for name in graph.modules}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)


def _inputs(graph: ModuleGraph, batch):
    return {name: batch.get(name, {}) for name in graph.modules}


def _call(graph: ModuleGraph, params, inputs):
    """Every output of every module by "module.port", in the order of the data."""
    outputs = {}
    for name in graph.order:
        fed = {e.destination.split(".")[1]: (outputs[e.source], e.gradient) for e in graph.inputs(name)}
        fed = {port: x if gradient else jax.lax.stop_gradient(x) for port, (x, gradient) in fed.items()}
        skeleton, _, buffers = flatten_module(graph.build(name, 0))
        made = skeleton.assemble(params[name], buffers)(**inputs[name], **fed)
        outputs |= {f"{name}.{port}": x for port, x in made.items()}
    return outputs


def largest_error(trainer: Trainer, batch, expected) -> float:
    """The largest relative error of a trainer's loss and of any of its gradients."""
    loss, gradients = expected
    found_loss, found = trainer.loss_and_gradients(trainer.init(), batch)
    pairs = [(found_loss, loss)]
    for module, own in found.items():
        pairs += [(gradient, gradients[module][path]) for path, gradient in own.items()]
    return max(relative_error(np.asarray(value), reference) for value, reference in pairs)
