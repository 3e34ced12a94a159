"""What a family of Hugging Face checkpoints is to us: modules, configs, and names of tensors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np
from flax import nnx

from hetjax.models.components import ComponentConfig
from hetjax.models.huggingface.entry import Entry
from hetjax.models.huggingface.tensor_files.quantized import ACTIVATION_SCALES
from hetjax.models.json_values import Json, JsonObject

Configs = dict[str, ComponentConfig]
"""The config of each module, by its name in the module graph."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of checkpoint.

    Attributes:
        name: how messages call it.
        model_types: `model_type` in config.json.
        read_config: config.json -> the config of each module; `configs` is for those that call it.
        write_config: the reverse.
        build: each module from its config.
        kinds: the class of each module's config.
        entries: the tensors of each module, from all configs.
        language_prefix: how the names of the language model's tensors begin; it alone is quantized.
        head: name of the tensor of the head; None for "lm_head.weight" behind `language_prefix`.
        kept: patterns of tensors that no module of ours holds, such as buffers of a front end; they travel along.
        constants: what is written for those of `kept` that no checkpoint gave.
        ones: patterns of tensors that are kept, too, and that hold ones; other numbers would be another model.
        ignored: patterns of tensors without meaning, which are left out.
        float32: patterns of tensors that stay float32 where others are cast.
        told_by: whether a checkpoint's tensors are of this family, and not of another of these types; None for no
            other, or the last.
        own_type: the one of `model_types` that a config.json with another `model_type` is read as.
    """

    name: str
    model_types: tuple[str, ...]
    read_config: Callable[[Mapping[str, Json]], Configs]
    write_config: Callable[[Configs], JsonObject]
    build: Mapping[str, Callable[[ComponentConfig, nnx.Rngs], nnx.Module]]
    kinds: Mapping[str, type[ComponentConfig]]
    entries: Callable[[Configs], dict[str, list[Entry]]]
    language_prefix: str = ""
    head: str | None = None
    kept: tuple[str, ...] = ()
    constants: Callable[[Configs], dict[str, np.ndarray]] = lambda configs: {}
    ones: tuple[str, ...] = ()
    ignored: tuple[str, ...] = (r"rotary_emb\.inv_freq$",)
    float32: tuple[str, ...] = ()
    told_by: Callable[[Mapping[str, np.ndarray]], bool] | None = None
    own_type: Callable[[Mapping[str, Json]], str] | None = None

    def configs(self, hf: Mapping[str, Json]) -> Configs:
        """Return the config of each module that a config.json describes, read as one of this family.

        Raises ModelError where it asks for what is not built.
        """
        if hf.get("model_type") not in self.model_types:
            hf = {**hf, "model_type": self.model_types[0] if self.own_type is None else self.own_type(hf)}
        return self.read_config(hf)

    def module(self, name: str, configs: Configs) -> nnx.Module:
        """Return a module without its numbers."""
        return nnx.eval_shape(lambda: self.build[name](configs[name], nnx.Rngs(0)))

    @property
    def head_name(self) -> str:
        """Name of the tensor of the head, which ties may leave out."""
        return f"{self.language_prefix}lm_head.weight" if self.head is None else self.head

    def keeps(self, name: str) -> bool:
        """Return whether a tensor is none of a module's, and travels along."""
        return matches(self.kept + self.ones, name) or name.endswith(ACTIVATION_SCALES)

    def keeps_float32(self, name: str) -> bool:
        """Return whether a tensor stays float32."""
        return matches(self.float32, name)


def matches(patterns: tuple[str, ...], name: str) -> bool:
    """Return whether one of these patterns is found in a name."""
    return any(re.search(pattern, name) for pattern in patterns)
