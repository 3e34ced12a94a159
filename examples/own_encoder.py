"""An image encoder and a data schema of one's own, for examples/own_encoder.yaml: a mixer of patches.

    python train.py --config examples/own_encoder.yaml

The class takes `init_args` of the YAML and `rngs`; three attributes say what it is to data and language model. Dims of
weights and activations have names, so that the layout of the YAML splits them; without names all works unsplit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from hetjax.models.dims import RESIDUAL, SEQUENCE, constrain
from hetjax.models.parallel.sharded_linear import sharded_linear
from hetjax.models.parts.linear import Linear
from hetjax.models.parts.norms import RMSNorm

# B batch · N images · T patches of an image · D width


class PatchMixer(nnx.Module):
    """Images [B, N, H, W, 3] to "tokens" [B, N * T, output_width] (after Tolstikhin et al. 2021, "MLP-Mixer")."""

    independent_samples = True  # gradients of the shards of `data` are added once a step

    def __init__(self, image_size: int, patch_size: int, width: int, layers: int, output_width: int, *, rngs: nnx.Rngs):
        self.patch_size = patch_size
        # What the data and the language model read of it:
        self.image_size, self.tokens_per_image = image_size, (image_size // patch_size) ** 2
        self.output_width = output_width
        self.patch = Linear({"patch": 3 * patch_size**2}, {"embed": width}, rngs=rngs)
        self.layers = nnx.List([Mixer(self.tokens_per_image, width, rngs=rngs) for _ in range(layers)])
        self.output = Linear({"embed": width}, {"embed": output_width}, rngs=rngs)

    def __call__(self, images):
        """Return {"tokens"}, each of a patch."""
        batch, count, size = images.shape[0], images.shape[1], self.patch_size
        side = self.image_size // size
        cells = images.astype(self.patch.dtype).reshape(batch, count, side, size, side, size, 3)
        patches = cells.transpose(0, 1, 2, 4, 3, 5, 6).reshape(batch, count * side**2, -1)
        (x,) = sharded_linear(patches, self.patch, given=RESIDUAL, wanted=RESIDUAL)
        for layer in self.layers:
            x = layer(x)
        return {"tokens": self.output(x)}


class Mixer(nnx.Module):
    """Mix the patches of an image, then the channels of a patch; each is added to the stream."""

    def __init__(self, tokens: int, width: int, *, rngs: nnx.Rngs):
        self.norms = nnx.List([RMSNorm(width, epsilon=1e-6, rngs=rngs) for _ in range(2)])
        self.tokens = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (tokens, tokens)))
        self.up = Linear({"embed": width}, {"mlp": 2 * width}, rngs=rngs)
        self.down = Linear({"mlp": 2 * width}, {"embed": width}, rngs=rngs)

    def __call__(self, x):
        """Return the stream [B, N * T, D]."""
        apart = self.norms[0](x).reshape(len(x), -1, len(self.tokens[...]), x.shape[-1])
        mixed = jnp.einsum("bntd,ts->bnsd", apart, self.tokens[...])
        x = x + constrain(jax.nn.gelu(mixed).reshape(x.shape), *RESIDUAL, "embed")
        (hidden,) = sharded_linear(self.norms[1](x), self.up, given=RESIDUAL, wanted=SEQUENCE)
        return x + sharded_linear(jax.nn.gelu(hidden), self.down, given=SEQUENCE, wanted=RESIDUAL)[0]


def with_question(sample, *, question: str):
    """Return a sample whose user asks this instead; `schema` of a source: it gets each sample as it is in its file."""
    asked, *answers = sample["messages"]
    return {**sample, "messages": [{**asked, "content": question}, *answers]}
