"""The settings of the model: its name, or the sizes of each of its modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jsonargparse.typing import register_type

from hetjax.errors import ConfigError
from hetjax.models import LoraConfig, ModelError, NemotronHConfig
from hetjax.models.class_path import OwnPart
from hetjax.models.components import (
    AudioEncoderConfig,
    ComponentConfig,
    EncoderConfig,
    LanguageModelConfig,
    VisionEncoderConfig,
)
from hetjax.models.own_module import OwnModule
from hetjax.models.presets import find_preset

for kind in (OwnModule, OwnPart):
    register_type(kind, kind.settings, kind, (ModelError,), fail_already_registered=False)

ENCODER_TYPES = ("vit", "radio", "siglip2", "clip", "qwen3_vl", "parakeet")
"""Kinds of encoders, the `type` of their settings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model that is trained.

    Args:
        preset: Name of a model, as `hetjax model` knows it, whose sizes the modules below have unless given; null for
            none.
        without: Modules of the preset that are left out, such as [audio].
        changes: Settings of the preset's modules that are other than in it, e.g. {vision.video_pruning_rate: 0.5}.
        llm: Sizes of the language model, a decoder or a hybrid with Mamba-2; null for the preset's. Any module may be
            one of your own, {class_path: my_file.MyModule, init_args: {width: 64}}, with the file on the path.
        vision: Sizes of the vision encoder; `type` says which: vit (images of one size, the default), radio, siglip2,
            clip, qwen3_vl. Null for the preset's, or none.
        audio: Sizes of the audio encoder; null for the preset's, or none.
        encoders: Sizes of the encoders of further modalities, with their `type`, by the name of their module.
        lora: Modules that train by low-rank maps beside their weights, which are frozen, e.g. {llm: {rank: 16}}.
    """

    preset: str | None = None
    without: list[str] = dataclasses.field(default_factory=list)
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    llm: LanguageModelConfig | None = None
    vision: VisionEncoderConfig | None = None
    audio: AudioEncoderConfig | None = None
    encoders: dict[str, EncoderConfig] = dataclasses.field(default_factory=dict)
    lora: dict[str, LoraConfig] = dataclasses.field(default_factory=dict)

    @staticmethod
    def of(components: Mapping[str, ComponentConfig]) -> ModelConfig:
        """Return the settings of a model that consists of these modules."""
        named = [field.name for field in dataclasses.fields(ModelConfig)]
        others = {name: config for name, config in components.items() if name not in named}
        return ModelConfig(**{name: config for name, config in components.items() if name in named}, encoders=others)

    def __post_init__(self):
        for name in self.encoders:
            if name in ("vision", "audio", "llm"):
                raise ConfigError(f"model.encoders names {name}, which has a setting of its own; give model.{name}")
        if self.preset is None:
            for name in ("without", "changes"):
                if getattr(self, name):
                    raise ConfigError(f"model.{name} is {getattr(self, name)}, but there is no model.preset to change")
        self.components  # noqa: B018  its errors should come now
        if "llm" not in self.components:
            raise ConfigError("model.llm is missing; give the sizes of a language model, or model.preset")
        if unknown := sorted(self.lora.keys() - self.components.keys()):
            raise ConfigError(f"model.lora names {unknown[0]}; the modules are {', '.join(self.components)}")
        self._check_widths()

    def check_types(self) -> None:
        """Raise ConfigError for an encoder of a YAML that does not say of which kind it is."""
        for name, config in {"vision": self.vision, **self.encoders}.items():
            if config is not None and getattr(config, "type", name) is None:  # one of your own may have no type
                place = name if name == "vision" else f"encoders.{name}"
                raise ConfigError(
                    f"model.{place} does not say of which kind it is, and its settings do not either; give "
                    f"model.{place}.type: {', '.join(ENCODER_TYPES)}"
                )

    @property
    def components(self) -> dict[str, ComponentConfig]:
        """Return the config of each module of the model, in the order of the data."""
        preset = {} if self.preset is None else _changed(find_preset(self.preset), self.changes)
        unknown = [name for name in self.without if name not in preset or name == "llm"]
        if unknown:
            leavable = ", ".join(name for name in preset if name != "llm")
            raise ConfigError(f"model.without names {', '.join(unknown)}; {self.preset} can do without {leavable}")
        own = {"vision": self.vision, "audio": self.audio, **self.encoders}
        given = {name: config or preset.get(name) for name, config in own.items()}
        given |= {name: config for name, config in preset.items() if name not in given}
        given["llm"] = self.llm or given.pop("llm", None)
        return {name: config for name, config in given.items() if config is not None and name not in self.without}

    def _check_widths(self) -> None:
        llm = self.components["llm"]
        for name, config in self.components.items():
            if isinstance(config, OwnModule):
                self._check_own(name, config)
        for name, config in self.components.items():
            if name == "llm":
                continue
            if config.output_width != llm.width:
                raise ConfigError(
                    f"model.{name}.output_width is {config.output_width}, but model.llm.width is {llm.width}; set both "
                    "alike, for the encoder's tokens enter the language model's sequence"
                )
        depths = {name: getattr(self.components.get(name), "deepstack_ports", ()) for name in ("vision", "llm")}
        if len(depths["vision"]) > len(depths["llm"]):
            raise ConfigError(
                f"model.vision makes tokens of {len(depths['vision'])} depths, but model.llm takes those of "
                f"{len(depths['llm'])}; give a Qwen3VlConfig with deepstack: {len(depths['vision'])}, or an encoder "
                "with deepstack: []"
            )
        pruning = getattr(self.components.get("vision"), "video_pruning_rate", 0)
        if pruning and not isinstance(llm, NemotronHConfig):
            raise ConfigError(
                f"model.vision.video_pruning_rate is {pruning}, but a {type(llm).__name__} cannot take token positions "
                "out of its sequence; set it to 0, or make the language model a NemotronHConfig"
            )

    def _check_own(self, name: str, config: OwnModule) -> None:
        for needed in ("width", "vocab_size") if name == "llm" else ("output_width",):
            if not hasattr(config, needed):
                raise ConfigError(
                    f"model.{name}: {config.class_path} has no attribute {needed}, by which it is fitted to the rest "
                    f"of the model; set self.{needed} in it"
                )


def _changed(preset: Mapping[str, ComponentConfig], changes: Mapping[str, object]) -> dict[str, ComponentConfig]:
    components = dict(preset)
    for key, value in changes.items():
        module, *path = key.split(".")
        if module not in components or not path:
            raise ConfigError(f"model.changes names {key}; begin with one of {', '.join(preset)} and a dot")
        components[module] = _replaced(components[module], path, value, key)
    return components


def _replaced(config: object, path: list[str], value: object, key: str) -> object:
    name, *rest = path
    known = [field.name for field in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    if name not in known:
        raise ConfigError(f"model.changes names {key}, but {type(config).__name__} has {', '.join(known)}")
    new = _replaced(getattr(config, name), rest, value, key) if rest else value
    try:
        return dataclasses.replace(config, **{name: new})
    except (ModelError, TypeError) as error:
        raise ConfigError(f"model.changes, {key}: {error}") from None
