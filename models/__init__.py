"""What is trained: Flax NNX modules and their configs. A model names dims and never mentions a mesh."""

from hetjax.models.clip import ClipEncoder
from hetjax.models.clip_config import ClipConfig
from hetjax.models.decoder import LanguageModel
from hetjax.models.decoder_config import DecoderConfig
from hetjax.models.errors import ModelError
from hetjax.models.lora import LoraConfig, merge_lora, with_lora
from hetjax.models.nemotron_h import NemotronH
from hetjax.models.nemotron_h_config import NemotronHConfig
from hetjax.models.parakeet import ParakeetEncoder
from hetjax.models.parakeet_config import ParakeetConfig
from hetjax.models.parts.mamba.config import MambaConfig
from hetjax.models.parts.moe import MoEConfig
from hetjax.models.parts.rope import RopeScaling
from hetjax.models.qwen3_vision import Qwen3VisionEncoder
from hetjax.models.qwen3_vision_config import Qwen3VisionConfig
from hetjax.models.qwen3_vl import Qwen3VlLanguageModel
from hetjax.models.qwen3_vl_config import Qwen3VlConfig
from hetjax.models.radio import RadioEncoder
from hetjax.models.radio_config import RadioConfig
from hetjax.models.sampling import GREEDY, Sampling
from hetjax.models.siglip2 import Siglip2Encoder
from hetjax.models.siglip2_config import Siglip2Config
from hetjax.models.vision_config import VisionConfig
from hetjax.models.vit import VisionEncoder

__all__ = [
    "GREEDY",
    "ClipConfig",
    "ClipEncoder",
    "DecoderConfig",
    "LanguageModel",
    "LoraConfig",
    "MambaConfig",
    "MoEConfig",
    "ModelError",
    "NemotronH",
    "NemotronHConfig",
    "ParakeetConfig",
    "ParakeetEncoder",
    "Qwen3VisionConfig",
    "Qwen3VisionEncoder",
    "Qwen3VlConfig",
    "Qwen3VlLanguageModel",
    "RadioConfig",
    "RadioEncoder",
    "RopeScaling",
    "Sampling",
    "Siglip2Config",
    "Siglip2Encoder",
    "VisionConfig",
    "VisionEncoder",
    "merge_lora",
    "with_lora",
]
