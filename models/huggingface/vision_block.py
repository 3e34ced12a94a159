"""Map the tensors that vision transformers of several families name alike."""

from __future__ import annotations

from hetjax.models.huggingface.entry import Entry, kernel, same
from hetjax.models.parts.vision_block import VisionSizes


def vision_block_entries(config: VisionSizes, layer: int, *, name: str, output: str, norm: str) -> list[Entry]:
    """Return the tensors of a layer but for queries, keys and values: attention's output, the MLP and both norms.

    Args:
        config: sizes of the encoder.
        layer: place of the layer in the stack.
        name: how the names of the layer's tensors begin, e.g. "encoder.layers.0.".
        output: name of attention's output map inside of it.
        norm: how the names of the two norms begin inside of it; 1 and 2 follow.
    """
    ours, width, hidden = "layers/block/", (config.width,), (config.mlp_width,)
    heads = (config.heads, config.width // config.heads)
    entries = [
        kernel(f"{name}{output}.weight", f"{ours}attention/output/kernel", layer, ins=heads, outs=width),
        same(f"{name}{output}.bias", f"{ours}attention/output/bias", layer),
        kernel(f"{name}mlp.fc1.weight", f"{ours}mlp/up/kernel", layer, ins=width, outs=hidden),
        same(f"{name}mlp.fc1.bias", f"{ours}mlp/up/bias", layer),
        kernel(f"{name}mlp.fc2.weight", f"{ours}mlp/down/kernel", layer, ins=hidden, outs=width),
        same(f"{name}mlp.fc2.bias", f"{ours}mlp/down/bias", layer),
    ]
    for number, part in ((1, "attention_norm"), (2, "mlp_norm")):
        entries += [
            same(f"{name}{norm}{number}.weight", f"{ours}{part}/scale", layer),
            same(f"{name}{norm}{number}.bias", f"{ours}{part}/bias", layer),
        ]
    return entries
