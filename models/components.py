"""Build the module that a config describes: one class a kind of config."""

from __future__ import annotations

from flax import nnx

from hetjax.models.clip import ClipEncoder
from hetjax.models.clip_config import ClipConfig
from hetjax.models.decoder import LanguageModel
from hetjax.models.decoder_config import DecoderConfig
from hetjax.models.nemotron_h import NemotronH
from hetjax.models.nemotron_h_config import NemotronHConfig
from hetjax.models.own_module import OwnModule
from hetjax.models.parakeet import ParakeetEncoder
from hetjax.models.parakeet_config import ParakeetConfig
from hetjax.models.qwen3_vision import Qwen3VisionEncoder
from hetjax.models.qwen3_vision_config import Qwen3VisionConfig
from hetjax.models.qwen3_vl import Qwen3VlLanguageModel
from hetjax.models.qwen3_vl_config import Qwen3VlConfig
from hetjax.models.radio import RadioEncoder
from hetjax.models.radio_config import RadioConfig
from hetjax.models.siglip2 import Siglip2Encoder
from hetjax.models.siglip2_config import Siglip2Config
from hetjax.models.vision_config import VisionConfig
from hetjax.models.vit import VisionEncoder

LanguageModelConfig = DecoderConfig | NemotronHConfig | Qwen3VlConfig | OwnModule
"""Describes a language model."""
VisionEncoderConfig = VisionConfig | RadioConfig | Siglip2Config | ClipConfig | Qwen3VisionConfig | OwnModule
"""Describes an encoder of images, and of videos where it takes them."""
AudioEncoderConfig = ParakeetConfig | OwnModule
"""Describes an encoder of audio."""
EncoderConfig = VisionEncoderConfig | AudioEncoderConfig
"""Describes an encoder."""
ComponentConfig = LanguageModelConfig | EncoderConfig
"""Describes a module."""

COMPONENTS: dict[type[ComponentConfig], type[nnx.Module]] = {
    DecoderConfig: LanguageModel,
    NemotronHConfig: NemotronH,
    Qwen3VlConfig: Qwen3VlLanguageModel,
    Qwen3VisionConfig: Qwen3VisionEncoder,
    VisionConfig: VisionEncoder,
    RadioConfig: RadioEncoder,
    Siglip2Config: Siglip2Encoder,
    ClipConfig: ClipEncoder,
    ParakeetConfig: ParakeetEncoder,
}
"""By config class: the module that is built from such a config."""


def build_component(config: ComponentConfig, rngs: nnx.Rngs) -> nnx.Module:
    """Return the module that a config describes, with fresh weights; under `nnx.eval_shape`, with shapes alone."""
    if isinstance(config, OwnModule):
        return config.build(rngs)
    return COMPONENTS[type(config)](config, rngs=rngs)
