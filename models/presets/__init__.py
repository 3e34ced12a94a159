"""Models by name: the configs of their components, by the name of the module."""

from __future__ import annotations

from hetjax.models.components import ComponentConfig
from hetjax.models.errors import ModelError
from hetjax.models.presets.llava import LLAVA_7B, LLAVA_13B
from hetjax.models.presets.nemotron_omni import NANO_OMNI, NANO_OMNI_300M, NANO_OMNI_TINY
from hetjax.models.presets.qwen3_vl import QWEN3_VL_8B, QWEN3_VL_30B_A3B

PRESETS: dict[str, dict[str, ComponentConfig]] = {
    "nemotron_3_nano_omni": NANO_OMNI,
    "nemotron_3_nano_omni_300m": NANO_OMNI_300M,
    "nemotron_3_nano_omni_tiny": NANO_OMNI_TINY,
    "llava_1_5_7b": LLAVA_7B,
    "llava_1_5_13b": LLAVA_13B,
    "qwen3_vl_8b": QWEN3_VL_8B,
    "qwen3_vl_30b_a3b": QWEN3_VL_30B_A3B,
}
"""{name: {module: config}}."""


def find_preset(name: str) -> dict[str, ComponentConfig]:
    """Return the components of a model by its name. Raises ModelError for a name that there is not."""
    if name not in PRESETS:
        raise ModelError(f"there is no model '{name}'; the models are {', '.join(PRESETS)}")
    return PRESETS[name]
