"""What is trained: Flax NNX modules and their configs. A model names dims and never mentions a mesh."""

from models.decoder import LanguageModel
from models.decoder_config import DecoderConfig
from models.errors import ModelError
from models.parts.moe import MoEConfig
from models.parts.rope import RopeScaling
from models.sampling import Sampling
from models.vit import VisionConfig, VisionEncoder

__all__ = [
    "DecoderConfig",
    "LanguageModel",
    "MoEConfig",
    "ModelError",
    "RopeScaling",
    "Sampling",
    "VisionConfig",
    "VisionEncoder",
]
