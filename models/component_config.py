"""The kinds of configs that describe a module of a model."""

from hetjax.models.decoder_config import DecoderConfig
from hetjax.models.nemotron_h_config import NemotronHConfig
from hetjax.models.parakeet_config import ParakeetConfig
from hetjax.models.radio_config import RadioConfig
from hetjax.models.siglip2_config import Siglip2Config
from hetjax.models.vision_config import VisionConfig

LanguageConfig = DecoderConfig | NemotronHConfig
"""Describes a language model."""
EncoderConfig = VisionConfig | RadioConfig | Siglip2Config | ParakeetConfig
"""Describes an encoder."""
ComponentConfig = LanguageConfig | EncoderConfig
"""Describes a module."""
