"""A small hybrid model with every kind of layer, and batches for it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hetjax.models import MambaConfig, MoEConfig, NemotronH, NemotronHConfig

EXPERTS = MoEConfig(
    count=4, top_k=2, activation="relu2", shared_width=8, scores="sigmoid", factor=2.5, bias_rate=0.02,
    balance_loss=0.05,
)  # fmt: skip
# One layer of Mamba, then twice a unit with two equal layers in it: three rows, of two groups, one of them nested.
HYBRID = NemotronHConfig(
    pattern="MM*EEM*EE",
    vocab_size=40,
    width=16,
    heads=4,
    kv_heads=2,
    head_dim=4,
    mamba=MambaConfig(heads=4, head_dim=4, groups=2, state=4, chunk=4),
    experts=EXPERTS,
    expert_width=8,
)
WITHOUT_LOSS = dataclasses.replace(HYBRID, experts=dataclasses.replace(EXPERTS, balance_loss=0.0))
"""Without the loss that counts documents packed into a row as one sequence."""


@functools.cache
def _filled(config):
    definition, shapes = nnx.split(nnx.eval_shape(lambda: NemotronH(config, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(4)

    def draw(path, variable):
        name, shape = path[-1], variable.shape
        if not jnp.issubdtype(variable.dtype, jnp.floating):
            return np.zeros(shape, variable.dtype)
        noise = random.normal(size=shape)
        scale = {"A_log": 0.5 * noise, "dt_bias": noise - 1, "D": 1 + 0.3 * noise, "scale": 1 + 0.3 * noise}
        return scale.get(name, 0.3 * noise)

    drawn = [(path, variable.replace(draw(path, variable))) for path, variable in nnx.to_flat_state(shapes)]
    return definition, nnx.from_flat_state(drawn)


def build_hybrid(config=HYBRID, dtype=np.float32) -> NemotronH:
    """A model with every weight, and the bias of its routers, drawn at random on the host."""
    definition, state = _filled(config)
    cast = lambda leaf: jnp.asarray(leaf, dtype if leaf.dtype.kind == "f" else leaf.dtype)  # noqa: E731
    return nnx.merge(definition, jax.tree.map(cast, state))


def hybrid_batch(samples=8, rows=16, dtype=np.float32, *, packed=True):
    """Tokens, labels and weights, with two or three documents a row where packed."""
    random = np.random.default_rng(7)
    ids = random.integers(0, HYBRID.vocab_size, (2, samples, rows)).astype(np.int32)
    weights = (random.random((samples, rows)) < np.linspace(0.2, 1, samples)[:, None]).astype(dtype)
    batch = {"tokens": ids[0], "labels": ids[1], "loss_weights": weights}
    if packed:
        borders = np.sort(random.integers(1, rows, (samples, 2)), axis=1)
        batch["segments"] = (np.arange(rows) >= borders[..., None]).sum(axis=1).astype(np.int32)
    return batch


def loss_and_gradients(model, batch):
    """(loss, gradients by path), jitted once a shape."""
    definition, params, rest = nnx.split(model, nnx.Param, ...)
    loss, gradients = _loss_and_gradients(definition, params, rest, batch)
    return loss, {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(gradients)}


@functools.partial(jax.jit, static_argnums=0)
def _loss_and_gradients(definition, params, rest, batch):
    def loss(params):
        return nnx.merge(definition, params, rest, copy=True)(**batch)["loss"]

    return jax.value_and_grad(loss)(params)
