"""Name the parts of a model in profiles and compiled texts, by `jax.named_scope` and one vocabulary.

An instruction of a compiled program has the scopes that it was traced in, outermost first, in its `op_name`:
"jit(forward)/layer/attention/norm/mul"; in a backward program they stand inside of "transpose(jvp(layer))". Scopes are
metadata alone: no number and no instruction depends on them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import jax

SCOPES = {
    "embedding": "token embeddings, with encoder tokens in their positions",
    "patch_embedding": "patches of images and videos to the width of the encoder, with learned positions and prefixes",
    "log_mel": "features of audio",
    "subsampling": "convolutions of stride 2 from features of audio to tokens",
    "layer": "one layer of a stack, once for all repeats of a scan",
    "norm": "a norm, wherever it stands",
    "rope": "the table of rotary positions, and rotations by it",
    "attention": "projections, attention and the projection back; relative attention of audio too",
    "causal": "attention in which a query sees no later key; its kernels count by it",
    "packed": "attention in which segments divide a row; its kernels count by it",
    "mamba": "a Mamba-2 mixer, from its projections to the one back",
    "mlp": "a network of two layers; that of a shared expert stands inside of experts",
    "experts": "a mixture of experts: its router, the exchange of tokens, and the experts",
    "router": "which experts a token goes to",
    "convolution": "the convolution module of an audio encoder's layer",
    "projector": "from the width of an encoder to that of the language model",
    "video_pruning": "dropping video tokens that repeat, and their positions in the sequence",
    "head": "the last norm of a language model, and its logits where it generates",
    "loss": "logits and their cross entropy, in chunks of tokens",
}
"""By name: what stands in a scope."""


def scope(name: str) -> AbstractContextManager[None]:
    """Return a context, or decorator, under which operations are traced in the scope `name`.

    Raises ValueError for a name that `SCOPES` does not list.
    """
    if name not in SCOPES:
        raise ValueError(f"there is no scope {name!r}; the scopes are {', '.join(SCOPES)}")
    return jax.named_scope(name)
