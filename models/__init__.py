"""What is trained: Flax NNX modules and their configs. A model names dims and never mentions a mesh."""

from models.decoder import LanguageModel
from models.decoder_config import DecoderConfig
from models.errors import ModelError
from models.nemotron_h import NemotronH
from models.nemotron_h_config import NemotronHConfig
from models.parts.mamba import MambaConfig
from models.parts.moe import MoEConfig
from models.parts.rope import RopeScaling
from models.sampling import Sampling
from models.vit import VisionConfig, VisionEncoder

__all__ = [
    "DecoderConfig",
    "LanguageModel",
    "MambaConfig",
    "MoEConfig",
    "ModelError",
    "NemotronH",
    "NemotronHConfig",
    "RopeScaling",
    "Sampling",
    "VisionConfig",
    "VisionEncoder",
]
