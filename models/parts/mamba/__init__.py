"""Mamba-2: a linear recurrence over the sequence in the place of attention (Dao and Gu 2024, state space duality).

With a head's input x_t [P], its step dt_t > 0 and its A < 0, and the vectors B_t, C_t [N] of the head's group,

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t ⊗ B_t        a state of [P, N] numbers, h_{-1} = 0
    y_t = h_t C_t + D x_t

`hetjax.models.kernels.mamba_scan` computes it, and `hetjax.models.parallel.mamba_context` for a sequence that several
devices share. x, B and C pass through `convolution` before, and y through `gated_norm` after; `mixer` is the whole
layer, and `cache` what it keeps in generation.
"""

from hetjax.models.kernels.causal_conv import Streams
from hetjax.models.parts.mamba.cache import MambaCache
from hetjax.models.parts.mamba.config import MambaConfig
from hetjax.models.parts.mamba.mixer import Mamba2

__all__ = ["Mamba2", "MambaCache", "MambaConfig", "Streams"]
