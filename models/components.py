"""The modules that a config can stand for: one class a kind of config."""

from __future__ import annotations

from typing import Any

from flax import nnx

from models.decoder import LanguageModel
from models.decoder_config import DecoderConfig
from models.nemotron_h import NemotronH
from models.nemotron_h_config import NemotronHConfig
from models.parakeet import ParakeetEncoder
from models.parakeet_config import ParakeetConfig
from models.radio import RadioEncoder
from models.radio_config import RadioConfig
from models.vit import VisionConfig, VisionEncoder

COMPONENTS: dict[type, type[nnx.Module]] = {
    DecoderConfig: LanguageModel,
    NemotronHConfig: NemotronH,
    VisionConfig: VisionEncoder,
    RadioConfig: RadioEncoder,
    ParakeetConfig: ParakeetEncoder,
}
"""By config class: the module that is built from such a config."""


def build_component(config: Any, rngs: nnx.Rngs) -> nnx.Module:
    """The module that a config describes, with fresh weights; under `nnx.eval_shape`, with shapes alone."""
    return COMPONENTS[type(config)](config, rngs=rngs)
