"""The families of checkpoints that convert."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from flax import nnx

from hetjax.models.clip import ClipEncoder
from hetjax.models.clip_config import ClipConfig
from hetjax.models.components import ComponentConfig
from hetjax.models.decoder import LanguageModel
from hetjax.models.decoder_config import DecoderConfig
from hetjax.models.errors import ModelError
from hetjax.models.huggingface import lfm2_vl, llava, omni, qwen3_vl
from hetjax.models.huggingface.family import Configs, Family
from hetjax.models.huggingface.llama import llama_config, llama_entries, llama_hf_config
from hetjax.models.huggingface.nemotron_h import nemotron_h_config, nemotron_h_entries, nemotron_h_hf_config
from hetjax.models.huggingface.qwen3 import qwen3_config, qwen3_entries, qwen3_hf_config
from hetjax.models.huggingface.siglip2 import siglip2_config, siglip2_entries, siglip2_hf_config
from hetjax.models.json_values import Json, JsonObject
from hetjax.models.nemotron_h import NemotronH
from hetjax.models.nemotron_h_config import NemotronHConfig
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


def _built(kind: type[nnx.Module]) -> Callable[[ComponentConfig, nnx.Rngs], nnx.Module]:
    return lambda config, rngs: kind(config, rngs=rngs)


LLAMA = Family(
    name="llama",
    model_types=("llama",),
    read_config=lambda hf: {"llm": llama_config(hf)},
    write_config=lambda configs: llama_hf_config(configs["llm"]),
    build={"llm": _built(LanguageModel)},
    kinds={"llm": DecoderConfig},
    entries=lambda configs: {"llm": llama_entries(configs["llm"])},
)

QWEN3 = Family(
    name="qwen3",
    model_types=("qwen3", "qwen3_moe"),
    read_config=lambda hf: {"llm": qwen3_config(hf)},
    write_config=lambda configs: qwen3_hf_config(configs["llm"]),
    build={"llm": _built(LanguageModel)},
    kinds={"llm": DecoderConfig},
    entries=lambda configs: {"llm": qwen3_entries(configs["llm"])},
    own_type=lambda hf: "qwen3" if hf.get("num_experts", hf.get("num_local_experts")) is None else "qwen3_moe",
)

NEMOTRON_H = Family(
    name="nemotron_h",
    model_types=("nemotron_h",),
    read_config=lambda hf: {"llm": nemotron_h_config(hf)},
    write_config=lambda configs: nemotron_h_hf_config(configs["llm"]),
    build={"llm": _built(NemotronH)},
    kinds={"llm": NemotronHConfig},
    entries=lambda configs: {"llm": nemotron_h_entries(configs["llm"])},
    float32=omni.FLOAT32,
)

OMNI = Family(
    name="nemotron_h_omni",
    model_types=omni.MODEL_TYPES,
    read_config=omni.omni_configs,
    write_config=omni.omni_hf_config,
    build={"vision": _built(RadioEncoder), "audio": _built(ParakeetEncoder), "llm": _built(NemotronH)},
    kinds={"vision": RadioConfig, "audio": ParakeetConfig, "llm": NemotronHConfig},
    entries=omni.omni_entries,
    language_prefix=omni.LANGUAGE,
    kept=omni.KEPT,
    constants=omni.omni_constants,
    ones=omni.ONES,
    ignored=omni.IGNORED,
    float32=omni.FLOAT32,
)

SIGLIP2_TOWER = Family(
    name="siglip2_vision",
    model_types=("siglip2_vision_model", "siglip_vision_model"),
    read_config=lambda hf: {"vision": siglip2_config(hf)},
    write_config=lambda configs: siglip2_hf_config(configs["vision"]),
    build={"vision": _built(Siglip2Encoder)},
    kinds={"vision": Siglip2Config},
    entries=lambda configs: {"vision": siglip2_entries(configs["vision"], prefix="")},
    kept=(r"^head\.",),
    own_type=lambda hf: "siglip2_vision_model" if "num_patches" in hf else "siglip_vision_model",
)


def _no_text_tower(configs: Configs) -> JsonObject:
    raise ModelError("the settings of a SigLIP 2's text tower are not ours; give --like its folder, or siglip2_vision")


SIGLIP2 = dataclasses.replace(
    SIGLIP2_TOWER,
    name="siglip2",
    model_types=("siglip2", "siglip"),
    write_config=_no_text_tower,
    entries=lambda configs: {"vision": siglip2_entries(configs["vision"])},
    own_type=None,
    # The text tower and the pooling head train with no module of ours.
    kept=(r"^text_model\.", r"^logit_(scale|bias)$", r"^vision_model\.head\."),
)

LFM2_VL = Family(
    name="lfm2_vl",
    model_types=("lfm2_vl",),
    read_config=lfm2_vl.lfm2_vl_configs,
    write_config=lfm2_vl.lfm2_vl_hf_config,
    build={"vision": _built(Siglip2Encoder), "llm": _built(LanguageModel)},
    kinds={"vision": Siglip2Config, "llm": DecoderConfig},
    entries=lfm2_vl.lfm2_vl_entries,
    language_prefix=lfm2_vl.LANGUAGE,
    head=lfm2_vl.HEAD,
    kept=lfm2_vl.KEPT,
)

LLAVA = Family(
    name="llava",
    model_types=("llava",),
    read_config=llava.llava_configs,
    write_config=llava.llava_hf_config,
    build={"vision": _built(ClipEncoder), "llm": _built(LanguageModel)},
    kinds={"vision": ClipConfig, "llm": DecoderConfig},
    entries=llava.llava_entries,
    language_prefix=llava.LANGUAGE,
    kept=llava.KEPT,
    constants=llava.llava_constants,
)

LLAVA_BARE = dataclasses.replace(
    LLAVA,
    name="llava_bare_tower",
    entries=partial(llava.llava_entries, tower=llava.BARE_TOWER),
    constants=partial(llava.llava_constants, tower=llava.BARE_TOWER),
    told_by=lambda tensors: f"{llava.BARE_TOWER}post_layernorm.weight" in tensors,
)

QWEN3_VL = Family(
    name="qwen3_vl",
    model_types=qwen3_vl.MODEL_TYPES,
    read_config=qwen3_vl.qwen3_vl_configs,
    write_config=qwen3_vl.qwen3_vl_hf_config,
    build={"vision": _built(Qwen3VisionEncoder), "llm": _built(Qwen3VlLanguageModel)},
    kinds={"vision": Qwen3VisionConfig, "llm": Qwen3VlConfig},
    entries=qwen3_vl.qwen3_vl_entries,
    language_prefix=qwen3_vl.LANGUAGE,
    head=qwen3_vl.HEAD,
)

QWEN3_VL_TURNED = dataclasses.replace(
    QWEN3_VL,
    name="qwen3_vl_turned_experts",
    model_types=qwen3_vl.MODEL_TYPES[1:],
    entries=partial(qwen3_vl.qwen3_vl_entries, released=False),
    told_by=qwen3_vl.are_of_transformers,
)

_ALL = (LLAMA, QWEN3, NEMOTRON_H, OMNI, LFM2_VL, LLAVA_BARE, LLAVA, QWEN3_VL_TURNED, QWEN3_VL, SIGLIP2, SIGLIP2_TOWER)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
"""All of them, by name."""


def find_family(
    hf: Mapping[str, Json], name: str | None = None, tensors: Mapping[str, np.ndarray] | None = None
) -> Family:
    """Return the family of a config.json with these tensors, or the family of that name.

    Raises ModelError for an unknown one.
    """
    if name is not None:
        if name not in FAMILIES:
            raise ModelError(f"there is no family '{name}'; the families are {', '.join(FAMILIES)}")
        return FAMILIES[name]
    kind = hf.get("model_type")
    for family in FAMILIES.values():
        if kind in family.model_types and (family.told_by is None or family.told_by(tensors or {})):
            return family
    known = dict.fromkeys(kind for family in FAMILIES.values() for kind in family.model_types)
    raise ModelError(
        f"config.json has model_type {kind!r}; this version converts {', '.join(known)}; where it is one of these "
        "under another name, give --family"
    )
