"""Checkpoints of whole modules (Orbax): saved on one placement, restored on any other.

The checkpoint of step 7 is the folder "7" with these items:
    <module>.weights     {"params": ..., "buffers": ...}, each a tree by the whole module's paths;
    <module>.opt_state   the optimizer's tree, for a module that trains;
    description          JSON: format, step, shape and dtype of every array, and the caller's `extra`.

`checkpoints` saves and restores those of a run; `writer` writes one in the background, and `folder` commits it by a
rename. `items` and `layer_slices` hold the formats of arrays. `warm_start` and `saved_weights` read
weights for a new run; `huggingface` imports and exports.
"""

from hetjax.checkpoint.checkpoints import Checkpoints

__all__ = ["Checkpoints"]
